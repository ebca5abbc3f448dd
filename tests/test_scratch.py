"""Models without pre-training: built once, of sizes that fit, and always the same."""

import json
from pathlib import Path

import pytest
from conftest import SIZES
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from tasks import base_model, scratch
from tasks.config import ModelConfig
from tasks.errors import ModelError

LLAMA = SIZES["llama"]


@pytest.fixture
def resolve(tiny_base: Path, tmp_path: Path):
    def build(architecture: str = "llama", sizes=LLAMA, **settings: object) -> Path:
        model = ModelConfig(base=str(tiny_base), init="scratch", architecture=architecture, sizes=sizes, **settings)
        return base_model.resolve(model, tmp_path)

    return build


def test_it_is_built_once_and_found_again(resolve, tmp_path, monkeypatch):
    first = resolve()
    assert first.parent == tmp_path / ".scratch"
    monkeypatch.setattr(scratch, "build", lambda *_: pytest.fail("built again"))
    assert resolve() == first
    assert [path.name for path in (tmp_path / ".scratch").iterdir()] == [first.name]


def test_the_seed_and_the_sizes_decide_what_it_is(resolve):
    folders = [resolve(), resolve(seed=1), resolve(sizes=LLAMA | {"num_hidden_layers": 1})]
    assert len(set(folders)) == 3
    one, other = (load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in folders[:2])
    assert one.shape == other.shape and (one != other).any()


def test_the_same_settings_give_the_same_weights_in_another_store(resolve, tiny_base, tmp_path):
    model = ModelConfig(base=str(tiny_base), init="scratch", architecture="llama", sizes=LLAMA)
    other = base_model.resolve(model, tmp_path / "other")
    assert base_model.digest(other, weights=True) == base_model.digest(resolve(), weights=True)


@pytest.mark.parametrize("architecture", SIZES)
def test_it_has_the_tokenizer_of_the_base_and_its_marks(resolve, tiny_base, architecture):
    folder = resolve(architecture, SIZES[architecture])
    ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (folder, tiny_base))
    assert ours.get_vocab() == theirs.get_vocab() and ours("a red b") == theirs("a red b")
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == len(theirs)
    assert config["eos_token_id"] == theirs.eos_token_id and config["pad_token_id"] == theirs.pad_token_id
    assert config.get("decoder_start_token_id") == (theirs.pad_token_id if config.get("is_encoder_decoder") else None)


def test_without_an_architecture_it_has_that_of_the_base(resolve):
    config = json.loads((resolve("", {"num_hidden_layers": 1}) / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_hidden_layers"] == 1 and config["hidden_size"] == 32


def test_the_family_can_be_chosen(resolve):
    folder = resolve(sizes=LLAMA | {"pad_token_id": 0}, family="encoder_classifier")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize(
    ("architecture", "sizes", "says"),
    [
        ("llama", {"hiden_size": 32}, "model.sizes: llama knows no 'hiden_size'; it knows, among others"),
        ("llama", {"num_hidden_layers": "two"}, "expected int, got str (value: 'two')"),
        ("llama", {"num_hidden_layers": 1.5}, "expected int, got float (value: 1.5)"),
        ("llama", {"hidden_size": 30, "num_attention_heads": 4}, "not a multiple of the number of attention heads"),
        ("llama", {"hidden_size": 0}, "model.sizes: no llama model can be built of these"),
        ("llama", {"vocab_size": 10}, "vocab_size is 10, and the tokenizer has 317 tokens"),
        ("qwen3", {"num_attention_heads": 3, "num_key_value_heads": 2}, "no qwen3 model can be built of these"),
        ("t5", {"d_model": -1}, "no t5 model can be built of these"),
        ("bart", {"encoder_attention_heads": 5}, "embed_dim must be divisible by num_heads"),
        ("gpt2", {"n_head": 5}, "`embed_dim` must be divisible by num_heads"),
        ("bert", {"num_attention_heads": 5}, "The hidden size (32) is not a multiple"),
        ("no-such-thing", {}, "no no-such-thing model can be built of these: Unrecognized model identifier"),
        ("vit", {}, "no vit model can be built of these"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words_and_leave_nothing(resolve, tmp_path, architecture, sizes, says):
    with pytest.raises(ModelError) as refusal:
        resolve(architecture, SIZES.get(architecture, {}) | sizes)
    assert says in str(refusal.value)
    assert str(refusal.value).startswith("model.sizes: ") and len(str(refusal.value)) < 400
    assert not list((tmp_path / ".scratch").iterdir())


def test_sizes_belong_to_scratch():
    with pytest.raises(ValueError, match="belong to 'init: scratch'"):
        ModelConfig(sizes={"hidden_size": 32})


def test_two_runs_that_build_it_at_once_both_get_it(resolve, monkeypatch):
    """The other one is done first, between the look and the rename."""
    build, folder = scratch.build, resolve()
    content = (folder / "model.safetensors").read_bytes()

    def slow(model: ModelConfig, base: Path, out: Path) -> None:
        build(model, base, out)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)

    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    monkeypatch.setattr(scratch, "build", slow)
    assert resolve() == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
