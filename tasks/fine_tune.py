"""Fine-tune: tune the base model on the formatted examples; the best checkpoint of the validations is kept."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoConfig, PreTrainedModel

from tasks import adapters, checkpoints, curves, estimate, launch
from tasks.config import FineTuneConfig
from tasks.errors import TrainingError
from tasks.families import find, load_family
from tasks.held_out import class_names
from tasks.job import Choices, Job
from tasks.layout import CURVES, PACKS, RESUME
from tasks.ledger import ShardWriter, Summary, read
from tasks.schema import HISTORY
from tasks.training import train
from tasks.training_log import history

log = logging.getLogger("attune.fine_tune")

STARTS = {"tuned": "the base model", "scratch": "a random initialisation"}


def fine_tune(config: FineTuneConfig, inputs: dict[str, Path], out: Path, family: str = "auto") -> Summary:
    """Write `tuned/` (a Hugging Face folder), with scratch_control also `scratch/`, `history` (HISTORY), `curves.svg`.

    With an adapter `adapter/` holds it alone and `tuned/` the merged model.  Goes on from the newest whole checkpoint
    in `out/resume`.  Figures hold what was `predicted` and what was `measured`.  Raises TrainingError when a loss or a
    gradient is not finite or memory runs out, Interrupted after SIGTERM.
    """
    family = find(inputs["base"]) if family == "auto" else family
    records: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"predicted": estimate.predict(config, inputs["base"], inputs["format"], family)}
    systems = ("tuned", "scratch") if config.scratch_control else ("tuned",)
    for system in systems:
        job = Job(system, family, inputs["base"], inputs["format"], config, (out / RESUME / system).absolute())
        log.info("%s: from %s", system, STARTS[system])
        began = time.perf_counter()
        state = _trained(job)
        _save_best(job, state["best_global_step"], out)
        records += history(system, state["log_history"], config.metric_for_best_model)
        figures[system] = _figures(job, state) | {"seconds": round(time.perf_counter() - began, 2)}
    writer = ShardWriter(out / "history", HISTORY)
    writer.write(pa.Table.from_pylist(records, schema=HISTORY))
    writer.close()
    trained = [figures[system] for system in systems]
    curves.draw(records, out / CURVES, {system: figures[system]["best_step"] for system in systems})
    figures["measured"] = {
        "steps": sum(each["steps"] for each in trained),
        "tokens": sum(each["tokens"] for each in trained),
        "disk_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }
    rows = read(inputs["format"] / "train", columns=["id"]).num_rows
    return Summary(rows_in=rows, rows_kept=rows, figures=figures | _packed(inputs["format"]))


def _trained(job: Job) -> dict[str, Any]:
    """Train to the end; the state of the last checkpoint.  Should the best one be damaged, it is trained again."""
    for _ in range(2):
        last = launch.train(job) if job.config.processes > 1 else train(job)
        state = checkpoints.state(last)
        if checkpoints.is_whole(best := _best(job, state["best_global_step"]), job.settings):
            return state
        log.warning("%s: the best checkpoint %s is damaged; trains again", job.system, best.name)
        shutil.rmtree(job.checkpoints)
    raise TrainingError(f"fine_tune: {job.checkpoints} does not hold what was written to it; is the disk sound?")


def _save_best(job: Job, step: int, out: Path) -> None:
    """Write the model of the best checkpoint as safetensors, in the precision that the base is stored in."""
    checkpoint, labels = _best(job, step), class_names(job.formatted)
    if job.config.method == "full" or job.system == "scratch":
        model = load_family(job.family).load(checkpoint, torch.float32, labels)
    else:
        model = adapters.merged(job.base, job.family, labels, checkpoint)
        (out / "adapter").mkdir()
        for path in checkpoint.glob("adapter_*"):
            shutil.copy(path, out / "adapter")
    _save(model, job.base, out / job.system)


def _save(model: PreTrainedModel, base: Path, folder: Path) -> None:
    stored = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32
    with checkpoints.disk_trouble_told("the model"):
        model.to(stored).save_pretrained(folder)


def _best(job: Job, step: int) -> Path:
    return job.checkpoints / f"checkpoint-{step}"


def _figures(job: Job, state: dict[str, Any]) -> dict[str, Any]:
    losses = {each["step"]: each["eval_loss"] for each in state["log_history"] if "eval_loss" in each}
    choices = Choices.read(job)
    return {
        "steps": state["global_step"],
        "tokens": state["num_input_tokens_seen"] * job.config.processes,
        "best_step": state["best_global_step"],
        "best_value": state["best_metric"],
        "best_validation_loss": losses[state["best_global_step"]],
        "precision": choices.precision,
        "per_device_batch_size": choices.batch_size,
        "gradient_accumulation_steps": choices.accumulation,
        "out_of_memory": choices.out_of_memory,
    }


def _packed(formatted: Path) -> dict[str, int]:
    if not (formatted / PACKS).exists():
        return {}
    return {"packed_rows": int(read(formatted / PACKS)["pack"].to_numpy().max()) + 1}
