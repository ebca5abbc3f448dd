"""Kill it anywhere: the same command again ends with the same weights."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import pytest
import small_training_process
import torch
from small_training import SETTINGS, formatted, losses, run

from tasks import checkpoints
from tasks.errors import TrainingError
from tasks.families import decoder_only
from tasks.ledger import read

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["tasks.fine_tune", "tasks.families.decoder_only"])
# Dropout makes the result depend on every random number; two passes make a step that can be left in its middle.
TRAINING = {
    **SETTINGS,
    "epochs": 2.0,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "evals_per_epoch": 1,
    "early_stopping_patience": 3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_base) -> Path:
    """The tiny base with dropout in its attention."""
    folder = tmp_path_factory.mktemp("dropout") / "base"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base) -> Path:
    """16 packed rows: 4 optimizer steps an epoch."""
    return formatted(tmp_path_factory.mktemp("made") / "format", tiny_base)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, made, base) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    run(made, base, out, **TRAINING)
    return digests(out)


def digests(out: Path) -> dict[str, str]:
    """Of all that is published."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and out / "resume" not in path.parents]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


Training = tuple[Process, Connection]


def start(made: Path, base: Path, out: Path, moment: str, waits: float = 30) -> Training:
    """A training in another process that has come to a moment."""
    hears, tells = Pipe(duplex=False)
    process = SERVER.Process(
        target=small_training_process.train, args=(tells, moment, waits, base, made, out, TRAINING)
    )
    process.start()
    tells.close()
    assert hears.recv() == "here"
    return process, hears


def kill(made: Path, base: Path, out: Path, moment: str) -> None:
    process, _ = start(made, base, out, moment)
    process.kill()
    process.join()


def terminate(made: Path, base: Path, out: Path, moment: str) -> str:
    """Ask it to stop; what it says then."""
    process, hears = start(made, base, out, moment, waits=1)
    process.terminate()
    told = hears.recv()
    process.join(25)
    assert process.exitcode == 75
    return told


def test_a_training_is_deterministic(tmp_path, made, base, undisturbed):
    run(made, base, tmp_path / "again", **TRAINING)
    assert digests(tmp_path / "again") == undisturbed


@pytest.mark.parametrize("moment", ["passes:6", "step:4", "validation:2", "saving:2", "saved:1"])
def test_killed_at_a_moment_and_started_again(tmp_path, made, base, undisturbed, moment):
    """passes:6 is in the middle of the third step, step:4 at the end of an epoch, saving:2 in the last save."""
    kill(made, base, tmp_path / "out", moment)
    run(made, base, tmp_path / "out", **TRAINING)
    assert digests(tmp_path / "out") == undisturbed


KILL_POINTS = [
    *(f"passes:{number}" for number in range(1, 17)),
    *(f"step:{number}" for number in range(1, 9)),
    *(f"{name}:{number}" for name in ("validation", "saving", "saved") for number in (1, 2)),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_pass_step_validation_and_save(tmp_path, made, base, undisturbed):
    """Prints the table of docs/training.md: `pytest tests/test_training_recovery.py -m slow -k every_pass -s`."""
    name = "tuned/model.safetensors"
    print(f"\n{'undisturbed':14} {undisturbed[name][:16]}")
    for moment in KILL_POINTS:
        out = tmp_path / moment.replace(":", "-")
        kill(made, base, out, moment)
        run(made, base, out, **TRAINING)
        print(f"{moment:14} {digests(out)[name][:16]}")
        assert digests(out) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_again_and_again(tmp_path, made, base, undisturbed):
    """One training that is killed in each of its steps, and then in each of its saves."""
    for moment in [
        *(f"step:{step}" for step in range(1, 5)),
        "saving:1",
        "saved:1",
        "validation:1",
        "step:2",
        "saving:1",
    ]:
        kill(made, base, tmp_path / "out", moment)
    run(made, base, tmp_path / "out", **TRAINING)
    assert digests(tmp_path / "out") == undisturbed


@pytest.mark.parametrize(
    "moment", ["passes:3", "passes:6", "step:3", "step:4", "validation:1", "validation:2", "saving:1"]
)
def test_sigterm_saves_leaves_and_goes_on(tmp_path, made, base, undisturbed, moment):
    began = time.monotonic()
    told = terminate(made, base, tmp_path / "out", moment)
    assert "stopped by SIGTERM" in told and "run the same command again" in told
    assert time.monotonic() - began < 25
    last = max((tmp_path / "out" / "resume" / "tuned").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    done = {"passes:3": 1, "passes:6": 2, "step:3": 3, "step:4": 4, "validation:1": 4, "validation:2": 8, "saving:1": 4}
    assert last.name == f"checkpoint-{done[moment]}", "the last finished step is saved"
    run(made, base, tmp_path / "out", **TRAINING)
    assert digests(tmp_path / "out") == undisturbed


def test_sigterm_twice(tmp_path, made, base, undisturbed):
    for moment in ("step:2", "passes:3", "step:1"):
        terminate(made, base, tmp_path / "out", moment)
    run(made, base, tmp_path / "out", **TRAINING)
    assert digests(tmp_path / "out") == undisturbed


def interrupted(made: Path, base: Path, out: Path) -> Path:
    """The checkpoints of a training that was killed in its last save: those of steps 4 and, torn, 8."""
    kill(made, base, out, "saved:2")
    return out / "resume" / "tuned"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "a bit of the optimizer": lambda folder: flip(folder / "optimizer.pt"),
    "a bit of the random states": lambda folder: flip(folder / "rng_state.pth"),
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "a file gone": lambda folder: (folder / "scheduler.pt").unlink(),
    "no seal": lambda folder: (folder / "seal.json").unlink(),
    "half a seal": lambda folder: os.truncate(folder / "seal.json", 80),
    "a seal of something else": lambda folder: (folder / "seal.json").write_text("[]"),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, made, base) -> Path:
    return interrupted(made, base, tmp_path_factory.mktemp("two") / "out").parent.parent


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, made, base, undisturbed, two_checkpoints, damage, caplog):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    folder = out / "resume" / "tuned"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    damage(folder / "checkpoint-8")
    run(made, base, out, **TRAINING)
    assert "training goes on from the one before" in caplog.text
    assert digests(out) == undisturbed


def test_a_best_checkpoint_that_is_damaged_is_trained_again(tmp_path, made, base, undisturbed, two_checkpoints, caplog):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    folder = out / "resume" / "tuned"
    best = checkpoints.state(folder / "checkpoint-8")["best_global_step"]
    flip(folder / f"checkpoint-{best}" / "model.safetensors")
    run(made, base, out, **TRAINING)
    assert digests(out) == undisturbed


def test_a_checkpoint_of_other_settings_does_not_count(tmp_path, made, base, two_checkpoints):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    summary, history = run(made, base, out, **TRAINING | {"epochs": 1.0})
    assert summary.figures["tuned"]["steps"] == 4 and len(losses(history)) == 4


def test_a_finished_training_is_not_trained_again(tmp_path, made, base, undisturbed, monkeypatch):
    run(made, base, tmp_path / "out", **TRAINING)
    for path in ("tuned", "history"):
        shutil.rmtree(tmp_path / "out" / path)
    monkeypatch.setattr(decoder_only, "summed_loss", lambda *_: pytest.fail("it trains"))
    run(made, base, tmp_path / "out", **TRAINING)
    assert digests(tmp_path / "out") == undisturbed


def test_early_stopping_survives_a_kill_after_its_decision(tmp_path, made, base):
    """Without care a training that goes on from there would run to the end of its epochs."""
    hot = TRAINING | {"epochs": 20.0, "learning_rate": 0.1, "lr_scheduler": "constant", "early_stopping_patience": 1}
    summary, _ = run(made, base, tmp_path / "out", **hot)
    assert summary.figures["tuned"]["steps"] < 80
    before = digests(tmp_path / "out")
    for path in ("tuned", "history"):
        shutil.rmtree(tmp_path / "out" / path)
    again, _ = run(made, base, tmp_path / "out", **hot)
    assert again.figures["tuned"]["steps"] == summary.figures["tuned"]["steps"]
    assert digests(tmp_path / "out") == before


def test_only_whole_checkpoints_ever_have_their_name(tmp_path, made, base):
    kill(made, base, tmp_path / "out", "saving:1")
    assert not list((tmp_path / "out" / "resume" / "tuned").glob("checkpoint-*"))


def crowded(monkeypatch: pytest.MonkeyPatch, most_rows: int, error: BaseException) -> list[int]:
    """Memory runs out with more than so many rows in a pass; the sizes of the passes that were tried."""
    honest, sizes = decoder_only.summed_loss, []

    def summed_loss(model, batch, label_smoothing=0.0):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > most_rows:
            raise error
        return honest(model, batch, label_smoothing)

    monkeypatch.setattr(decoder_only, "summed_loss", summed_loss)
    return sizes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_pass_and_keeps_the_global_batch(tmp_path, made, tiny_base, monkeypatch, error):
    settings = {"per_device_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 4}
    _, roomy = run(made, tiny_base, tmp_path / "roomy", **settings)
    sizes = crowded(monkeypatch, 2, error)
    summary, history = run(made, tiny_base, tmp_path / "out", **settings)
    found = summary.figures["tuned"]
    assert (found["per_device_batch_size"], found["gradient_accumulation_steps"], found["out_of_memory"]) == (2, 4, 2)
    assert sizes == [8, 4] + [2] * 16
    assert losses(history) == pytest.approx(losses(roomy), abs=1e-5)


def test_out_of_memory_in_the_middle_goes_on_from_the_last_finished_step(tmp_path, made, tiny_base, monkeypatch):
    settings = {"per_device_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "evals_per_epoch": 1}
    _, roomy = run(made, tiny_base, tmp_path / "roomy", **settings)
    honest, calls = decoder_only.summed_loss, []

    def summed_loss(model, batch, label_smoothing=0.0):
        calls.append(len(batch["input_ids"]))
        if len(calls) == 8:  # the second pass of the fourth step
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, batch, label_smoothing)

    monkeypatch.setattr(decoder_only, "summed_loss", summed_loss)
    _, history = run(made, tiny_base, tmp_path / "out", **settings)
    assert calls == [4] * 8 + [2] * 12
    assert losses(history) == pytest.approx(losses(roomy), abs=1e-5)


def test_what_ran_out_of_memory_once_begins_smaller_when_it_goes_on(tmp_path, made, tiny_base, monkeypatch):
    sizes = crowded(monkeypatch, 4, torch.OutOfMemoryError("CUDA out of memory"))
    settings = {"per_device_batch_size": 8, "max_steps": 2}
    run(made, tiny_base, tmp_path / "out", **settings)
    sizes.clear()
    shutil.rmtree(tmp_path / "out" / "resume" / "tuned" / "checkpoint-2")
    for path in ("tuned", "history"):
        shutil.rmtree(tmp_path / "out" / path)
    run(made, tiny_base, tmp_path / "out", **settings)
    assert set(sizes) == {4}


def test_one_row_that_does_not_fit_is_told(tmp_path, made, tiny_base, monkeypatch):
    crowded(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(TrainingError, match=r"memory runs out with one row.*gradient_checkpointing"):
        run(made, tiny_base, tmp_path / "out", per_device_batch_size=6, max_steps=2)


def test_a_history_that_was_interrupted_is_whole(tmp_path, made, base, undisturbed):
    kill(made, base, tmp_path / "out", "step:6")
    run(made, base, tmp_path / "out", **TRAINING)
    assert [row["step"] for row in read(tmp_path / "out" / "history").to_pylist()] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


WRITES = """
import resource, signal, sys, torch
from safetensors.torch import save_file
from tasks.checkpoints import disk_trouble_told
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write = {"torch": torch.save, "safetensors": save_file}[sys.argv[1]]
try:
    with disk_trouble_told("the model"):
        write({"a": torch.zeros(10**6)}, sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("writer", ["torch", "safetensors"])
def test_a_full_disk_is_told_in_plain_words_whoever_writes(tmp_path, writer):
    command = [sys.executable, "-c", WRITES, writer, str(tmp_path / "weights")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("TrainingError fine_tune: the model could not be written; is the disk full?"), done
