"""Fine-tune: what the settings mean, step by step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_training import formatted, losses, run

from tasks import metrics
from tasks.errors import ConfigError, TrainingError
from tasks.families import decoder_only
from tasks.format import load_tokenizer
from tasks.ledger import read
from tasks.schema import IGNORE_INDEX


@pytest.fixture
def made(tmp_path: Path, tiny_base: Path) -> Path:
    return formatted(tmp_path / "format", tiny_base)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return decoder_only.load(folder).state_dict()


def test_the_same_global_batch_gives_the_same_loss_and_weights(tmp_path, made, tiny_base):
    """Loss is weighted by supervised tokens over the global batch, however it is cut into forward passes."""
    results = []
    for number, (batch, accumulation) in enumerate([(8, 1), (1, 8), (4, 2)]):
        settings = {"per_device_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        _, history = run(made, tiny_base, tmp_path / str(number), **settings)
        results.append((losses(history), weights(tmp_path / str(number) / "tuned")))
    first, expected = results[0]
    for other, found in results[1:]:
        assert other == pytest.approx(first, abs=1e-5)
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=2e-4, rtol=0)


def test_packed_and_unpacked_rows_have_the_same_loss(tmp_path, made, tiny_base):
    """All examples in one batch: 16 packed rows, or 48 rows of their own."""
    plain = formatted(tmp_path / "plain", tiny_base, packed=False)
    _, packed = run(made, tiny_base, tmp_path / "a", per_device_batch_size=16, max_steps=2)
    _, padded = run(plain, tiny_base, tmp_path / "b", per_device_batch_size=48, max_steps=2)
    assert losses(padded) == pytest.approx(losses(packed), abs=1e-5)


@pytest.mark.timeout(200)
def test_two_processes_have_the_loss_of_one(tmp_path, made, tiny_base):
    """15 rows, so that the last batch is filled up; two gloo processes under accelerate launch."""
    odd = formatted(tmp_path / "odd", tiny_base, rows=45)
    settings = {"epochs": 2.0, "evals_per_epoch": 1}
    one, alone = run(odd, tiny_base, tmp_path / "one", per_device_batch_size=4, **settings)
    two, shared = run(odd, tiny_base, tmp_path / "two", per_device_batch_size=2, processes=2, **settings)
    assert len(losses(alone)) == 8
    assert losses(shared) == pytest.approx(losses(alone), abs=1e-5)
    assert two.figures["tuned"]["best_validation_loss"] == pytest.approx(
        one.figures["tuned"]["best_validation_loss"], abs=1e-4
    )


def test_a_file_of_accelerate_that_is_not_there_is_told(tmp_path, made, tiny_base):
    with pytest.raises(ConfigError, match=r"fine_tune.accelerate: there is no file none\.yaml"):
        run(made, tiny_base, tmp_path / "b", max_steps=1, processes=2, accelerate="none.yaml")


@pytest.mark.slow
def test_processes_that_fail_are_told_in_their_words(tmp_path, made, tiny_base):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\n")
    with pytest.raises(TrainingError, match="starts no processes that know of each other"):
        run(made, tiny_base, tmp_path / "a", max_steps=1, processes=2, accelerate=str(wrong))


def test_the_best_checkpoint_is_kept_and_is_the_one_that_history_says(tmp_path, made, tiny_base):
    """Trained far too hot, the last weights are worse than an earlier checkpoint's."""
    settings = {"epochs": 10.0, "learning_rate": 0.1, "lr_scheduler": "constant", "evals_per_epoch": 2}
    summary, history = run(made, tiny_base, tmp_path / "out", **settings)
    validations = {row["step"]: row["validation_loss"] for row in history if row["validation_loss"] is not None}
    best = min(validations, key=lambda step: validations[step])
    assert summary.figures["tuned"]["best_step"] == best < max(validations)
    found = decoder_only.example_losses(decoder_only.load(tmp_path / "out" / "tuned"), _validation(made))
    assert sum(loss for loss, _ in found) / sum(count for _, count in found) == pytest.approx(
        validations[best], abs=1e-4
    )


def _validation(made: Path) -> list[dict[str, object]]:
    return read(made / "validation").to_pylist()


def test_early_stopping_ends_after_patience_validations_without_improvement(tmp_path, made, tiny_base):
    settings = {"epochs": 50.0, "learning_rate": 0.1, "lr_scheduler": "constant", "early_stopping_patience": 2}
    summary, history = run(made, tiny_base, tmp_path / "out", **settings)
    validations = [row["validation_loss"] for row in history if row["validation_loss"] is not None]
    assert summary.figures["tuned"]["steps"] < 50 * 2
    assert validations.index(min(validations)) == len(validations) - 3


def test_another_metric_can_choose_the_checkpoint_and_stop_early(tmp_path, made, tiny_base, monkeypatch):
    values = iter([0.2, 0.7, 0.5, 0.6, 0.9])
    monkeypatch.setattr(metrics, "value", lambda name, predictions, references: next(values))
    settings = {"epochs": 9.0, "metric_for_best_model": "exact_match", "early_stopping_patience": 2}
    summary, history = run(made, tiny_base, tmp_path / "out", evals_per_epoch=1, **settings)
    seen = {row["step"]: row["validation_metric"] for row in history if row["validation_metric"] is not None}
    assert list(seen.values()) == [0.2, 0.7, 0.5, 0.6]
    assert summary.figures["tuned"]["best_value"] == 0.7 == seen[summary.figures["tuned"]["best_step"]]


def test_a_metric_of_answers_is_taken_from_what_the_model_says(tmp_path, made, tiny_base, monkeypatch):
    heard = []
    monkeypatch.setattr(metrics, "value", lambda *given: heard.append(given) or 0.5)
    run(made, tiny_base, tmp_path / "out", max_steps=1, metric_for_best_model="rouge_l")
    ((name, predictions, references),) = heard
    tokenizer = load_tokenizer(tiny_base, "chatml")
    targets = [[label for label in row["labels"] if label != IGNORE_INDEX] for row in _validation(made)]
    assert name == "rouge_l" and references == [tokenizer.decode(each) for each in targets]
    assert len(predictions) == len(references)


def test_a_validation_looks_at_so_many_rows_the_same_each_time(tmp_path, made, tiny_base):
    _, history = run(made, tiny_base, tmp_path / "a", max_steps=1, learning_rate=1e-9, validation_max_rows=5)
    _, again = run(made, tiny_base, tmp_path / "b", max_steps=1, learning_rate=1e-9, validation_max_rows=5)
    _, every = run(made, tiny_base, tmp_path / "c", max_steps=1, learning_rate=1e-9)
    seen = [row["validation_loss"] for rows in (history, again, every) for row in rows if row["validation_loss"]]
    assert seen[0] == seen[1] != seen[2]


def test_the_last_step_is_validated_whatever_the_interval(tmp_path, made, tiny_base):
    _, history = run(made, tiny_base, tmp_path / "out", max_steps=5, evals_per_epoch=2)
    assert [row["step"] for row in history if row["validation_loss"] is not None] == [3, 5]


def test_the_control_has_the_same_steps_and_another_start(tmp_path, made, tiny_base):
    summary, history = run(made, tiny_base, tmp_path / "out", scratch_control=True, epochs=1.0, seed=1)
    assert summary.figures["tuned"]["steps"] == summary.figures["scratch"]["steps"]
    first = {row["system"]: row["loss"] for row in reversed(history) if row["loss"] is not None}
    assert first["tuned"] != first["scratch"]
    assert (tmp_path / "out" / "scratch" / "model.safetensors").exists()


def test_weights_are_stored_in_the_precision_of_the_base(tmp_path, made, tiny_base):
    half = shutil.copytree(tiny_base, tmp_path / "half")
    decoder_only.load(tiny_base).to(torch.bfloat16).save_pretrained(half)
    run(made, half, tmp_path / "out", max_steps=1)
    assert json.loads((tmp_path / "out" / "tuned" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor"])
def test_every_optimizer_learns_and_differs(tmp_path, made, tiny_base, optimizer):
    settings = {"learning_rate": 0.1 if optimizer == "sgd" else 0.01, "weight_decay": 0.1}
    _, history = run(made, tiny_base, tmp_path / "out", optimizer=optimizer, max_steps=20, **settings)
    found = losses(history)
    assert found[-1] < found[0] - 0.3


def test_weight_decay_is_decoupled_in_adamw_and_not_in_adam(tmp_path, made, tiny_base):
    """With a gradient of nothing, AdamW shrinks a weight by rate x decay; Adam's step is of the size of the rate."""
    for optimizer in ("adamw", "adam"):
        settings = {"max_steps": 1, "learning_rate": 0.01, "weight_decay": 0.5, "optimizer": optimizer}
        run(made, tiny_base, tmp_path / optimizer, **settings)
    before = weights(tiny_base)["model.embed_tokens.weight"][300]  # a token that no row holds
    decoupled, coupled = (
        weights(tmp_path / name / "tuned")["model.embed_tokens.weight"][300] for name in ("adamw", "adam")
    )
    assert not torch.allclose(decoupled, coupled, atol=1e-3)
    assert (before - coupled).abs().max() <= 0.0101


@pytest.mark.parametrize(
    ("scheduler", "last"), [("linear", 0.0), ("cosine", 0.0), ("constant", 0.01)], ids=lambda value: str(value)
)
def test_schedules_rise_and_end_as_named(tmp_path, made, tiny_base, scheduler, last):
    settings = {"max_steps": 20, "warmup_ratio": 0.25, "lr_scheduler": scheduler}
    _, history = run(made, tiny_base, tmp_path / "out", **settings)
    rates = [row["learning_rate"] for row in history if row["loss"] is not None]
    assert rates[0] == 0 and rates[5] == 0.01 == max(rates)
    assert rates[1:5] == pytest.approx([0.002, 0.004, 0.006, 0.008])
    assert rates[-1] == pytest.approx(last, abs=1e-3)


def test_gradients_are_clipped(tmp_path, made, tiny_base):
    """A step of plain gradient descent is as long as the rate times the norm that gradients are cut to."""
    settings = {"max_steps": 1, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5, "max_grad_norm": 0.01}
    _, history = run(made, tiny_base, tmp_path / "out", **settings)
    before, after = weights(tiny_base), weights(tmp_path / "out" / "tuned")
    moved = {name: after[name] - before[name] for name in before if name != "lm_head.weight"}
    assert torch.cat([each.flatten() for each in moved.values()]).norm() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert next(row["grad_norm"] for row in history if row["grad_norm"]) > 0.01


def test_neftune_moves_the_training_loss_and_not_the_validation(tmp_path, made, tiny_base):
    quiet = {"max_steps": 1, "learning_rate": 1e-9}
    _, plain = run(made, tiny_base, tmp_path / "a", **quiet)
    _, noisy = run(made, tiny_base, tmp_path / "b", neftune_noise_alpha=20.0, **quiet)
    assert losses(plain) != pytest.approx(losses(noisy), abs=1e-4)
    assert plain[-1]["validation_loss"] == pytest.approx(noisy[-1]["validation_loss"], abs=1e-4)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, made, tiny_base):
    _, plain = run(made, tiny_base, tmp_path / "a", max_steps=3)
    _, saving = run(made, tiny_base, tmp_path / "b", max_steps=3, gradient_checkpointing=True)
    assert losses(saving) == pytest.approx(losses(plain), abs=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_rows(tmp_path, made, tiny_base, monkeypatch):
    honest, calls = decoder_only.summed_loss, iter(range(1, 100))
    monkeypatch.setattr(
        decoder_only, "summed_loss", lambda *given: honest(*given) * (1, float("nan"))[next(calls) == 3]
    )
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 3, on s:\d+, s:\d+.* and 19 more; nothing"
    ) as stop:
        run(made, tiny_base, tmp_path / "out", max_steps=8, evals_per_epoch=8)
    assert "Lower fine_tune.learning_rate" in str(stop.value)
    left = tmp_path / "out" / "resume" / "tuned" / "checkpoint-2"
    assert all(torch.isfinite(weight).all() for weight in weights(left).values())


def test_gradients_that_are_no_number_never_reach_the_weights(tmp_path, made, tiny_base, monkeypatch):
    honest = decoder_only.summed_loss

    def poisoned(model, batch, label_smoothing=0.0):
        loss = honest(model, batch, label_smoothing)
        loss.register_hook(lambda gradient: gradient * float("inf")) if batch["input_ids"].numel() else None
        return loss

    monkeypatch.setattr(decoder_only, "summed_loss", poisoned)
    with pytest.raises(TrainingError, match="the gradients' norm is nan at step 1"):
        run(made, tiny_base, tmp_path / "out", max_steps=2)


def test_what_shows_a_training_can_be_chosen(tmp_path, made, tiny_base, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run(made, tiny_base, tmp_path / "out", max_steps=2, report_to=["tensorboard"])
    assert list((tmp_path / "board").rglob("events.*"))
