"""LoRA and DoRA: only the adapter is trained, both adapter and merged model are kept, and they answer alike."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import formatted, losses, run

from tasks import adapters, requirements
from tasks.config import FineTuneConfig
from tasks.errors import ConfigError
from tasks.families import decoder_only
from tasks.ledger import read

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1}


@pytest.fixture
def made(tmp_path: Path, tiny_base: Path) -> Path:
    return formatted(tmp_path / "format", tiny_base)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_merged_model_is_the_base_with_its_adapter(tmp_path, made, tiny_base, method):
    from peft import PeftModel

    _, history = run(made, tiny_base, tmp_path / "out", method=method, lora=LORA, max_steps=20)
    assert losses(history)[-1] < losses(history)[0] - 0.1
    adapter, tuned = tmp_path / "out" / "adapter", tmp_path / "out" / "tuned"
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(tuned.glob("adapter*"))
    rows = read(made / "validation").to_pylist()
    together = PeftModel.from_pretrained(decoder_only.load(tiny_base), adapter).eval()
    apart = [loss for loss, _ in decoder_only.example_losses(together, rows)]
    merged = [loss for loss, _ in decoder_only.example_losses(decoder_only.load(tuned), rows)]
    base = [loss for loss, _ in decoder_only.example_losses(decoder_only.load(tiny_base), rows)]
    assert merged == pytest.approx(apart, abs=1e-4)
    assert merged != pytest.approx(base, abs=1e-1)


def test_only_the_adapter_is_trained(tiny_base):
    config = FineTuneConfig(method="lora", lora=LORA)
    model = adapters.add(decoder_only.load(tiny_base), "decoder_only", config)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert all(min(parameter.shape) == 4 for parameter in trained.values())


def test_the_layers_can_be_chosen_and_unknown_ones_are_told(tmp_path, made, tiny_base):
    lora = LORA | {"target_modules": ["q_proj"]}
    run(made, tiny_base, tmp_path / "out", method="lora", lora=lora, max_steps=1)
    names = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert names and all(".q_proj." in name for name in names)
    with pytest.raises(ConfigError, match=r"fine_tune\.lora\.target_modules: .*nobody"):
        run(made, tiny_base, tmp_path / "no", method="lora", lora=LORA | {"target_modules": ["nobody"]}, max_steps=1)


def test_the_control_is_tuned_in_full(tmp_path, made, tiny_base):
    """A random initialisation with a frozen base could learn nothing."""
    run(made, tiny_base, tmp_path / "out", method="lora", lora=LORA, max_steps=1, scratch_control=True)
    scratch, base = (decoder_only.load(folder) for folder in (tmp_path / "out" / "scratch", tiny_base))
    assert not torch.equal(scratch.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_a_training_of_an_adapter_goes_on_where_it_was(tmp_path, made, tiny_base):
    import shutil

    settings = {"method": "lora", "lora": LORA, "max_steps": 6, "evals_per_epoch": 2}
    run(made, tiny_base, tmp_path / "whole", **settings)
    run(made, tiny_base, tmp_path / "cut", **settings)
    for path in ("resume/tuned/checkpoint-6", "tuned", "adapter", "history"):
        shutil.rmtree(tmp_path / "cut" / path)
    run(made, tiny_base, tmp_path / "cut", **settings)
    for name in ("adapter/adapter_model.safetensors", "tuned/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "settings", [{"method": "qlora"}, {"optimizer": "adamw_8bit"}, {"attn_implementation": "flex_attention"}]
)
def test_what_needs_a_gpu_says_so_at_once(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=f"fine_tune.{name}: {value} needs a GPU with CUDA, and there is none here"):
        requirements.check(FineTuneConfig(**settings))


def test_a_tracker_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fine_tune\.report_to: mlflow is not installed"):
        requirements.check(FineTuneConfig(report_to=["mlflow"]))
    requirements.check(FineTuneConfig())
