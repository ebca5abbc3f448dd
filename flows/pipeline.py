"""The flow: seven calls in order."""

from prefect import State, flow

from flows.runtime import Run, as_task
from tasks.config import PipelineConfig
from tasks.stages import STAGES

collect, clean, split, format, fine_tune, evaluate, export = (as_task(stage) for stage in STAGES.values())


@flow(name="pipeline", flow_run_name="{config.name}", persist_result=False)
def pipeline(config: PipelineConfig) -> State[str]:
    """Raw instruction data in; a tuned, evaluated, exported model out.  Returns the folder of the run's record."""
    with Run(config) as run:
        collected = collect(run)
        cleaned = clean(run, collected)
        splits = split(run, cleaned)
        formatted = format(run, splits)
        tuned = fine_tune(run, formatted)
        evaluated = evaluate(run, splits, formatted, tuned)
        export(run, collected, cleaned, splits, formatted, tuned, evaluated)
    return run.result()
