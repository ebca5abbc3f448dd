"""The flow: seven calls in order."""

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect import State, flow

from flows import artifacts
from flows.connection import at_work
from flows.overlaps import skipped_since_last_run
from flows.runtime import Run, as_task, explained
from tasks.config import PipelineConfig
from tasks.stages import STAGES

collect, clean, split, format, fine_tune, evaluate, export = (as_task(stage) for stage in STAGES.values())


@flow(name="pipeline", flow_run_name=artifacts.run_name, persist_result=False, validate_parameters=False)
@explained
def pipeline(config: PipelineConfig) -> State[str]:
    """Raw instruction data in; a tuned, evaluated, exported model out.  Returns the folder of the run's record."""
    artifacts.tag_run(config)
    with at_work(), Run(config) as run:
        run.folder.record.skipped_runs = skipped_since_last_run()
        collected = collect(run)
        cleaned = clean(run, collected)
        splits = split(run, cleaned)
        formatted = format(run, splits)
        tuned = fine_tune(run, formatted)
        evaluated = evaluate(run, splits, formatted, tuned)
        export(run, collected, cleaned, splits, formatted, tuned, evaluated)
    return run.result()
