"""The base model's folder: found, digested, and refused when unsafe or incomplete, before any library opens it."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tasks import families
from tasks.config import ModelConfig
from tasks.disk import digest_file, digest_json
from tasks.errors import ModelError

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
_WANTED_FROM_HUB = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def resolve(model: ModelConfig, store_folder: str | Path) -> Path:
    """The local folder of the base model, fetched from the Hub when `base` is a name there.

    With `init: scratch` it is built once, in `store_folder`, beside the artifacts or their copies.  Raises ModelError
    when it is missing, incomplete, holds only pickle weights or brings its own code.
    """
    if model.base.startswith("package:"):
        folder = _in_package(model.base.removeprefix("package:"))
    else:
        folder = Path(model.base).expanduser()
    if not folder.exists() and _HUB_NAME.fullmatch(model.base):
        folder = _from_hub(model)
    if not folder.is_dir():
        raise ModelError(f"model.base: there is no folder {folder.absolute()}")
    _check_files(folder)
    if model.init == "scratch":
        return _from_scratch(model, folder, Path(store_folder) / ".scratch")
    _check_weights(folder)
    return folder


def family(model: ModelConfig, folder: Path) -> str:
    """The family of the base model in `folder`.  Raises ModelError when nothing tells it."""
    return families.find(folder) if model.family == "auto" else model.family


def digest(folder: Path, *, weights: bool) -> str:
    """Digest of the files that loading the model reads; without `weights`, that loading its tokenizer reads."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_read(path, weights)]
    return digest_json([[path.name, digest_file(path)] for path in files])


def _is_read(path: Path, weights: bool) -> bool:
    if path.suffix == ".safetensors":
        return weights
    return path.suffix in {".json", ".txt", ".model", ".jinja"}


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.base, revision=model.revision, allow_patterns=_WANTED_FROM_HUB))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ModelError(
            f"model.base: {model.base!r} is no local folder, and revision {model.revision!r} of it "
            f"could not be fetched from the Hub{offline}: {str(error).splitlines()[0]}"
        ) from None


def _in_package(name: str) -> Path:
    """NAME/FOLDER: a folder inside an installed Python package, which is looked up but not imported."""
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model.base: the Python package {package!r} is not installed")
    root = Path(spec.submodule_search_locations[0]).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or folder == root:
        raise ModelError(f"model.base: package:{name} names no folder inside the package")
    return folder


def _from_scratch(model: ModelConfig, folder: Path, home: Path) -> Path:
    """A folder with the tokenizer of `folder`, and a model of the given sizes with random weights."""
    settings = model.model_dump(include={"architecture", "sizes", "seed", "family"})
    target = home / digest_json([settings, digest(folder, weights=False)])[:32]
    if target.exists():
        return target
    from tasks.scratch import build

    home.mkdir(parents=True, exist_ok=True)
    fresh = Path(mkdtemp(dir=home))
    try:
        build(model, folder, fresh)
        os.rename(fresh, target)
    except FileExistsError:  # another run built the same meanwhile
        pass
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _check_files(folder: Path) -> None:
    """What any library reads of it is a plain file, and nothing in it is code or a way to other files.

    Links are followed, since the Hub's cache is made of them.
    """
    names = sorted(path.name for path in folder.iterdir())
    if odd := [path.name for path in sorted(folder.iterdir()) if _is_read(path, weights=True) and not path.is_file()]:
        raise ModelError(f"model.base: {folder / odd[0]} is no file, or a link to none")
    if scripts := [name for name in names if name.endswith(".py")]:
        raise ModelError(f"model.base: {folder} brings its own code ({scripts[0]}); attune runs no remote code")
    for path in sorted({folder / "config.json", *folder.glob("*config.json")}):
        _check_config(path)
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"model.base: {folder} holds an adapter, whose model is elsewhere; merge the two first")
    pickles = [name for name in names if Path(name).suffix in _PICKLES]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"model.base: {folder} holds only pickle weights ({pickles[0]}), which can run code when they are opened; "
            "it needs *.safetensors"
        )
    if not any(name.startswith("tokenizer") or name == "vocab.json" for name in names):
        raise ModelError(f"model.base: {folder} holds no tokenizer")
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists() and not _begins_as_json(tokenizer):
        raise ModelError(f"model.base: {tokenizer} holds no JSON object")


def _check_config(path: Path) -> None:
    """No part of a config may name code to load, or weights beside those that are checked."""
    left: list[Any] = [_json(path, must_be_object=path.name == "config.json")]
    while left:
        part = left.pop()
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        for name in part if isinstance(part, dict) else ():
            if name == "auto_map":
                raise ModelError(f"model.base: {path} asks for its own code (auto_map); attune runs no remote code")
            if name == "transformers_weights":
                raise ModelError(
                    f"model.base: {path} names its own file of weights ({name}), which attune cannot check"
                )
            if name.endswith("attn_implementation") and "/" in str(part[name]):
                raise ModelError(f"model.base: {path} asks for code from the Hub ({name}: {part[name]})")


def _begins_as_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def _check_weights(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    shards = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    if not shards:
        raise ModelError(f"model.base: {folder} holds no weights; it needs *.safetensors")
    index = folder / "model.safetensors.index.json"
    if not index.exists() and "model.safetensors" not in names:
        raise ModelError(
            f"model.base: {folder} is incomplete: {index.name} is missing, which says what is in its shards"
        )
    weight_map = _json(index).get("weight_map") if index.exists() else {}
    if not isinstance(weight_map, dict):
        raise ModelError(f"model.base: {index} has no weight_map")
    named = sorted(set(map(str, weight_map.values())))
    if odd := [name for name in named if not name.endswith(".safetensors") or "/" in name or "\\" in name]:
        raise ModelError(f"model.base: {index} names {odd[0]}; it needs *.safetensors in its own folder")
    if missing := [name for name in named if name not in names]:
        raise ModelError(f"model.base: {folder} is incomplete: {missing[0]} is missing")
    for shard in shards:
        _check_shard(shard)


def _check_shard(path: Path) -> None:
    """A safetensors file says in its header how long it must be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > size:
            raise ModelError(f"model.base: {path} is cut short or no safetensors file")
        try:
            header = json.loads(file.read(header_bytes))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            expected = 8 + header_bytes + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ModelError(f"model.base: {path} is no safetensors file") from None
    if size != expected:
        raise ModelError(
            f"model.base: {path} has {size} bytes, its header says {expected}: it is damaged or half copied"
        )


def _json(path: Path, *, must_be_object: bool = True) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model.base: {path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.base: {path} is not readable JSON: {error}") from None
    if isinstance(value, dict):
        return value
    if must_be_object:
        raise ModelError(f"model.base: {path} holds no JSON object")
    return {}
