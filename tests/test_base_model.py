"""The base model's folder: what is unsafe or incomplete is refused by name, before any library opens it."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.base_model import digest, resolve
from tasks.config import ModelConfig
from tasks.errors import ModelError

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The files of a base model in one shard."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("A model.")
    save_file({"a": np.ones(8), "b": np.zeros((2, 3))}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def shard(base: Path) -> None:
    """The same model in two shards with an index."""
    (base / "model.safetensors").unlink()
    for name, tensor in zip(SHARDS, "ab", strict=True):
        save_file({tensor: np.ones(8)}, base / name)
    (base / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))


def pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def tokenless(base: Path) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()


def with_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda base: (base / name).write_text(text)


def with_header(header: object, body: bytes = b"") -> Callable[[Path], object]:
    text = (json.dumps(header) if not isinstance(header, str) else header).encode()
    return lambda base: (base / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda base: (base / name).write_bytes((base / name).read_bytes()[:size])


def sharded_but(break_it: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda base: (shard(base), break_it(base))


BREAKS = {
    "no config": (lambda base: (base / "config.json").unlink(), "config.json is missing"),
    "config no JSON": (with_file("config.json", "{"), "config.json is not readable JSON"),
    "config no object": (with_file("config.json", "[]"), "config.json holds no JSON object"),
    "model of its own code": (with_file("config.json", '{"auto_map": {}}'), "config.json asks for its own code"),
    "tokenizer of its own code": (
        with_file("tokenizer_config.json", '{"auto_map": {}}'),
        "tokenizer_config.json asks for its own code",
    ),
    "a script": (with_file("modeling_own.py", ""), "brings its own code (modeling_own.py)"),
    "no tokenizer": (tokenless, "holds no tokenizer"),
    "only pickle": (pickled, "only pickle weights (pytorch_model.bin)"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "holds no weights"),
    "weights empty": (cut("model.safetensors", 0), "model.safetensors is no safetensors file"),
    "weights cut in the header": (cut("model.safetensors", 60), "model.safetensors is cut short"),
    "weights cut at the end": (cut("model.safetensors", -1), "model.safetensors has"),
    "weights longer": (with_header({"a": {"data_offsets": [0, 4]}}, b"12345"), "model.safetensors has"),
    "a page of HTML": (with_file("model.safetensors", "<!DOCTYPE html>" * 20), "model.safetensors is cut short"),
    "header no JSON": (with_header("{garbage"), "model.safetensors is no safetensors file"),
    "header too deep": (with_header("[" * 100_000), "model.safetensors is no safetensors file"),
    "header a list": (with_header([1]), "model.safetensors is no safetensors file"),
    "offsets missing": (with_header({"a": {}}), "model.safetensors is no safetensors file"),
    "offsets short": (with_header({"a": {"data_offsets": [0]}}), "model.safetensors is no safetensors file"),
    "offsets of text": (with_header({"a": {"data_offsets": ["0", "4"]}}), "model.safetensors is no safetensors file"),
    "shard missing": (sharded_but(lambda base: (base / SHARDS[1]).unlink()), f"{SHARDS[1]} is missing"),
    "shard cut": (sharded_but(cut(SHARDS[1], -1)), f"{SHARDS[1]} has"),
    "index missing": (sharded_but(lambda base: (base / INDEX).unlink()), f"{INDEX} is missing"),
    "index no JSON": (sharded_but(with_file(INDEX, "")), f"{INDEX} is not readable JSON"),
    "index without map": (sharded_but(with_file(INDEX, '{"weight_map": []}')), f"{INDEX} has no weight_map"),
}


@pytest.mark.parametrize(("break_it", "says"), BREAKS.values(), ids=BREAKS)
def test_an_unsafe_or_incomplete_folder_is_refused_and_the_file_named(base, break_it, says):
    break_it(base)
    with pytest.raises(ModelError) as refusal:
        resolve(ModelConfig(base=str(base)), base)
    assert str(refusal.value).startswith("model.base: ")
    assert says in str(refusal.value)
    assert str(base) in str(refusal.value)


@pytest.mark.parametrize("change", [lambda base: None, shard, with_file("pytorch_model.bin", "beside")])
def test_a_whole_folder_passes(base, change):
    change(base)
    assert resolve(ModelConfig(base=str(base)), base) == base


@pytest.mark.parametrize("name", ["nobody/has-this", "has-this", "/no/such/folder", "../../outside", "a\nb"])
def test_what_is_nowhere_is_refused_by_its_name(name):
    with pytest.raises(ModelError) as refusal:
        resolve(ModelConfig(base=name), "store")
    assert str(refusal.value).startswith("model.base: ")
    assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "of_model", "of_tokenizer"),
    [
        ("tokenizer.json", True, True),
        ("config.json", True, True),
        ("chat_template.jinja", True, True),
        ("merges.txt", True, True),
        ("model.safetensors", True, False),
        ("README.md", False, False),
        (".gitattributes", False, False),
        ("pytorch_model.bin", False, False),
    ],
)
def test_the_digest_reacts_to_the_files_that_loading_reads(base, name, of_model, of_tokenizer):
    before = [digest(base, weights=weights) for weights in (True, False)]
    assert [digest(base, weights=weights) for weights in (True, False)] == before
    (base / name).write_bytes(b"other")
    after = [digest(base, weights=weights) for weights in (True, False)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [of_model, of_tokenizer]
