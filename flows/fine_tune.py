"""The flow that is deployed on the work pool gpu: one training, for a pipeline that waits for it elsewhere."""

from typing import Any

from prefect import State, flow

from flows import artifacts
from flows.connection import at_work
from flows.runtime import Run, explained
from tasks.config import PipelineConfig
from tasks.errors import TrainingError
from tasks.plan import differences, look_up
from tasks.stages import STAGES
from tasks.store import ArtifactRef


@flow(name="fine-tune", flow_run_name=artifacts.run_name, persist_result=False, validate_parameters=False)
@explained
def fine_tune(config: PipelineConfig, inputs: dict[str, dict[str, str]], parts: dict[str, Any]) -> State[str]:
    """Train on the artifacts that `inputs` names (stage, key, digest of each), and publish the result in the store.

    `parts` is what the caller made the artifact's key of.  Where code, libraries or base model differ here, the run
    fails and says what differs, since what it would make is not what was asked for.
    """
    stage = STAGES["fine_tune"]
    with at_work(), Run(config.model_copy(update={"runs": f"{config.runs}/fine-tune"})) as run:
        refs = {name: ArtifactRef(**ref) for name, ref in inputs.items()}
        here = look_up(stage, config, refs, run.store)
        if other := differences(parts, here.parts):
            raise TrainingError(f"fine_tune: this worker would train something else: {'; '.join(other)}")
        run.refs.update(refs)
        run.stage(stage, refs)
    return run.result()
