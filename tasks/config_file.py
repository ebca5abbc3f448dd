"""Config files: YAML with `extends:` and overrides, read safely, checked against the schema."""

import re
from difflib import get_close_matches
from pathlib import Path
from types import GenericAlias
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.config import PipelineConfig, Section
from tasks.errors import ConfigError


def load(path: str | Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Read a YAML config with what it extends, apply `section.field=value` overrides, and check all of it.

    Raises ConfigError with one line per mistake: the field's path, what was given and what is allowed.
    """
    raw = _read(Path(path), ())
    for override in overrides or []:
        _apply(raw, override)
    try:
        return PipelineConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "\n".join(_explain(e) for e in error.errors())) from None


def checked(config: Any) -> PipelineConfig:
    """What the form of a run was given, checked against the schema.

    Raises ConfigError, all mistakes in one line.
    """
    if isinstance(config, PipelineConfig):
        return config
    try:
        return PipelineConfig.model_validate(config)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 3e-4 as a number (YAML 1.1 wants 3.0e-4) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in `path`, laid over the one that its `extends:` names (relative to it)."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    try:
        raw = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such config; the shipped ones are in configs/") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, got {type(raw).__name__}")
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: takes the path of another config, got {parent!r}")
    return _merge(_read(path.parent / parent, (*seen, path.resolve())), raw)


def _yaml(text: str) -> Any:
    """The value that `text` holds; raises YAMLError, also where PyYAML fails otherwise, as on the date 2020-13-45."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: mappings merge key by key, everything else replaces."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"override {override!r}: write section.field=value, such as fine_tune.learning_rate=3e-4")
    *sections, field = path.split(".")
    node: Any = raw
    for section in sections:
        node = _child(node, section, override)
    try:
        value = _yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    if isinstance(node, list):
        node[_position(node, field, override)] = value
    else:
        node[field] = value


def _child(node: Any, name: str, override: str) -> Any:
    """What `name` (a key, or a position in a list) leads to from `node`; a missing section is made."""
    child = node[_position(node, name, override)] if isinstance(node, list) else node.setdefault(name, {})
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"override {override!r}: {name} is not a section")
    return child


def _position(items: list[Any], text: str, override: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ConfigError(f"override {override!r}: {text!r} is no position in a list of {len(items)}; the first is 0")
    return int(text)


def _explain(error: Any) -> str:
    """One line for one mistake: where, what was given, what is allowed."""
    where = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(error['loc'])}"
    if error["type"] == "missing":
        return f"{where}: is required"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = error["input"]
    return f"{where}: {message}" if isinstance(given, (dict, list)) else f"{where}: {message}, got {given!r}"


def _nearest(loc: tuple[int | str, ...]) -> str:
    """`; did you mean …?` or the list of known keys of the section that holds the unknown one."""
    section: Any = PipelineConfig
    for part in loc[:-1]:
        if isinstance(part, str) and part in getattr(section, "model_fields", {}):
            section = _section_of(section.model_fields[part].annotation)
    known = list(getattr(section, "model_fields", {}))
    close = get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _section_of(annotation: Any) -> Any:
    """The Section inside `annotation`, such as SourceConfig in list[SourceConfig] | None."""
    if isinstance(annotation, type) and not isinstance(annotation, GenericAlias) and issubclass(annotation, Section):
        return annotation
    inner = (_section_of(each) for each in getattr(annotation, "__args__", ()))
    found = (each for each in inner if isinstance(each, type) and not isinstance(each, GenericAlias))
    return next((each for each in found if issubclass(each, Section)), annotation)
