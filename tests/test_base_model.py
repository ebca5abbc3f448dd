"""The base model's folder: what is unsafe or incomplete is refused by name, before any library opens it."""

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from tasks import templates
from tasks.base_model import digest, family, resolve
from tasks.config import ModelConfig
from tasks.errors import AttuneError, ModelError
from tasks.families import load_family

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
    "part of its own code": (
        with_file("config.json", '{"text_config": {"auto_map": {}}}'),
        "config.json asks for its own code",
    ),
    "kernels from the Hub": (
        with_file("config.json", '{"vision_config": {"attn_implementation": "someone/kernels"}}'),
        "config.json asks for code from the Hub (attn_implementation: someone/kernels)",
    ),
    "weights by another name": (
        with_file("config.json", '{"transformers_weights": "other.safetensors"}'),
        "config.json names its own file of weights",
    ),
    "an adapter": (with_file("adapter_config.json", "{}"), "holds an adapter"),
    "tokenizer a page of HTML": (with_file("tokenizer.json", "<!DOCTYPE html>"), "tokenizer.json holds no JSON object"),
    "config a folder": (
        lambda base: (base / "generation_config.json").mkdir(),
        "generation_config.json is no file",
    ),
    "weights a link to nothing": (
        lambda base: ((base / "model.safetensors").unlink(), (base / "model.safetensors").symlink_to("nowhere")),
        "model.safetensors is no file, or a link to none",
    ),
    "a pipe": (lambda base: os.mkfifo(base / "generation_config.json"), "generation_config.json is no file"),
    "index to a pickle": (
        sharded_but(with_file(INDEX, '{"weight_map": {"a": "pytorch_model.bin"}}')),
        "names pytorch_model.bin; it needs *.safetensors in its own folder",
    ),
    "index to another folder": (
        sharded_but(with_file(INDEX, '{"weight_map": {"a": "../other/model.safetensors"}}')),
        "names ../other/model.safetensors; it needs *.safetensors in its own folder",
    ),
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


def linked(base: Path) -> None:
    """As in the Hub's cache, where each file is a link to a blob elsewhere."""
    blobs = base.parent / f"{base.name}-blobs"
    shutil.move(base, blobs)
    base.mkdir()
    for blob in blobs.iterdir():
        (base / blob.name).symlink_to(blob)


@pytest.mark.parametrize("change", [lambda base: None, shard, with_file("pytorch_model.bin", "beside"), linked])
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


def test_a_scratch_model_needs_the_tokenizer_only(tiny_base, tmp_path):
    """Its folder is checked for code all the same, before any library opens it."""
    folder = shutil.copytree(tiny_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    model = ModelConfig(base=str(folder), init="scratch")
    assert (resolve(model, tmp_path / "store") / "model.safetensors").exists()
    with pytest.raises(ModelError, match="holds no weights"):
        resolve(ModelConfig(base=str(folder)), tmp_path / "store")
    (folder / "modeling_own.py").write_text("")
    with pytest.raises(ModelError, match="brings its own code"):
        resolve(model, tmp_path / "store")


@pytest.mark.parametrize("name", ["only pickle", "model of its own code", "tokenizer of its own code", "a script"])
def test_a_scratch_model_is_not_made_from_an_unsafe_folder(base, tmp_path, name):
    break_it, says = BREAKS[name]
    break_it(base)
    with pytest.raises(ModelError) as refusal:
        resolve(ModelConfig(base=str(base), init="scratch"), tmp_path / "store")
    assert says in str(refusal.value)


@pytest.fixture
def package(tmp_path, base, monkeypatch) -> Path:
    """An installed Python package that holds the base in the folder `model`, and must not be imported."""
    folder = tmp_path / "site" / "some_weights"
    shutil.copytree(base, folder / "model", ignore=shutil.ignore_patterns("site"))
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_base_in_a_package_is_found_without_importing_it(package):
    assert resolve(ModelConfig(base="package:some_weights/model"), "store") == package / "model"
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("package:no_such_weights/model", "the Python package 'no_such_weights' is not installed"),
        ("package:some-weights/model", "the Python package 'some-weights' is not installed"),
        ("package:some_weights.inner/model", "the Python package 'some_weights.inner' is not installed"),
        ("package:json/../../etc", "package:json/../../etc names no folder inside the package"),
        ("package:some_weights", "package:some_weights names no folder inside the package"),
        ("package:some_weights/", "package:some_weights/ names no folder inside the package"),
        ("package:some_weights/models", "there is no folder"),
        ("package:math/model", "the Python package 'math' is not installed"),  # a module that is no package
        ("package:/etc", "the Python package '' is not installed"),
    ],
)
def test_a_package_without_the_base_is_told(package, name, says):
    with pytest.raises(ModelError) as refusal:
        resolve(ModelConfig(base=name), "store")
    assert says in str(refusal.value)


class Bait:
    """A pickle that makes a file as soon as it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_the_bait_bites(tmp_path):
    pickle.loads(pickle.dumps(Bait(tmp_path / "marker")))  # noqa: S301
    assert (tmp_path / "marker").exists()


CODE = "import os\nos.mkdir({marker!r})\n\n\nclass Own:\n    pass\n"
ESCAPE = "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ cycler.__init__.__globals__.os.mkdir({marker!r}) }}}}"
AUTO_MAP = {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}


def add(folder: Path, name: str, **fields: object) -> None:
    """Lay fields over a JSON file."""
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def with_code(change: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    def attack(folder: Path, marker: Path) -> None:
        (folder / "own.py").write_text(CODE.format(marker=str(marker)))
        change(folder)

    return attack


def code_elsewhere(folder: Path, marker: Path) -> None:
    """The code lies in another folder, where no check of this one sees it."""
    other = folder.parent / "other"
    other.mkdir(exist_ok=True)
    (other / "own.py").write_text(CODE.format(marker=str(marker)))
    add(folder, "config.json", model_type="own", auto_map={"AutoConfig": f"{other}--own.Own"})


def pickled_weights(name: str, *, alone: bool) -> Callable[[Path, Path], object]:
    def attack(folder: Path, marker: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Bait(marker)))
        if alone:
            (folder / "model.safetensors").unlink()

    return attack


def torch_archive(folder: Path, marker: Path) -> None:
    """The format of torch.save, behind the name of safe weights."""
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bait(marker)))


def indexed_pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bait(marker)))
    add(folder, "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "pytorch_model.bin"})


def redirected(folder: Path, marker: Path) -> None:
    """An adapter whose base model is elsewhere, and whose type is another library's."""
    other = folder.parent / "other"
    other.mkdir(exist_ok=True)
    (other / "pytorch_model.bin").write_bytes(pickle.dumps(Bait(marker)))
    (folder.parent / "own_library.py").write_text(CODE.format(marker=str(marker)))
    mapping = {"base_model_class": "Own", "parent_library": "own_library"}
    add(folder, "adapter_config.json", base_model_name_or_path=str(other), peft_type="LORA", auto_mapping=mapping)


def linked_pickle(folder: Path, marker: Path) -> None:
    blob = folder.parent / "blob"
    blob.write_bytes(pickle.dumps(Bait(marker)))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blob)


def escaping_template(folder: Path, marker: Path) -> None:
    (folder / "chat_template.jinja").write_text(ESCAPE.format(marker=str(marker)))


def escaping_template_in_config(folder: Path, marker: Path) -> None:
    add(folder, "tokenizer_config.json", chat_template=ESCAPE.format(marker=str(marker)))


ATTACKS: dict[str, Callable[[Path, Path], object]] = {
    "auto_map in config.json": with_code(lambda folder: add(folder, "config.json", auto_map=AUTO_MAP)),
    "auto_map in tokenizer_config.json": with_code(
        lambda folder: add(folder, "tokenizer_config.json", auto_map=AUTO_MAP)
    ),
    "auto_map in generation_config.json": with_code(
        lambda folder: add(folder, "generation_config.json", auto_map=AUTO_MAP)
    ),
    "auto_map in processor_config.json": with_code(
        lambda folder: add(folder, "processor_config.json", auto_map=AUTO_MAP)
    ),
    "auto_map to another folder": code_elsewhere,
    "code of a type that nobody knows": with_code(lambda folder: add(folder, "config.json", model_type="own")),
    "pickle beside safetensors": pickled_weights("pytorch_model.bin", alone=False),
    "pickle alone": pickled_weights("pytorch_model.bin", alone=True),
    "pickle named .pt": pickled_weights("model.pt", alone=True),
    "pickle named safetensors": pickled_weights("model.safetensors", alone=False),
    "torch archive named safetensors": torch_archive,
    "index that names a pickle": indexed_pickle,
    "link to a pickle": linked_pickle,
    "weights by another name": lambda folder, marker: (
        pickled_weights("own.bin", alone=False)(folder, marker),
        add(folder, "config.json", transformers_weights="own.bin"),
    ),
    "tokenizer.json that is a pickle": pickled_weights("tokenizer.json", alone=False),
    "adapter": redirected,
    "chat template": escaping_template,
    "chat template in tokenizer_config.json": escaping_template_in_config,
    "deep JSON": lambda folder, marker: (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000),
}
HARMLESS = {"pickle beside safetensors"}
"""Nothing reads it, so the folder is used."""
REFUSED_LATER = {"chat template", "chat template in tokenizer_config.json"}
"""A template is refused when it is rendered, in the sandbox that transformers renders all templates in."""


@pytest.mark.parametrize("init", ["pretrained", "scratch"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_crafted_folder_runs_code(tiny_base, tmp_path, attack, init):
    folder, marker = shutil.copytree(tiny_base, tmp_path / "base"), tmp_path / "marker"
    ATTACKS[attack](folder, marker)
    refused = None
    try:
        found = resolve(ModelConfig(base=str(folder), init=init), tmp_path / "store")
        tokenizer = AutoTokenizer.from_pretrained(found)
        used = load_family(family(ModelConfig(), found))
        used.load(found)
        tokenizer.chat_template = used.chat_template("auto", tokenizer)
        templates.prompt_text(templates.Conversation([{"role": "user", "content": "a"}]), tokenizer)
    except AttuneError as error:
        refused = error
    assert not marker.exists()
    weights_only = attack in {"pickle named safetensors", "torch archive named safetensors", "link to a pickle"}
    unread = attack in HARMLESS or (init == "scratch" and (weights_only or attack == "index that names a pickle"))
    assert unread == (refused is None)
    if refused is not None and attack not in REFUSED_LATER:
        assert str(refused).startswith("model.base: ")
