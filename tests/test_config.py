"""The config's schema: every field is described, shows its default in a form, and stands in the quickstart's config."""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from tasks.config import PipelineConfig, Section

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def fields(section: type[Section] = PipelineConfig, path: str = "") -> Iterator[tuple[str, FieldInfo, list[type]]]:
    """Every field of the schema: its path, itself, and the sections inside it."""
    for name, field in section.model_fields.items():
        inner = [kind for kind in _kinds(field.annotation) if issubclass(kind, Section)]
        yield f"{path}{name}", field, inner
        for kind in inner:
            yield from fields(kind, f"{path}{name}.")


def _kinds(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]


def test_every_field_is_described_and_shows_its_default_in_the_form():
    every = list(fields())
    assert len(every) > 50
    assert [path for path, field, _ in every if not (field.description or "").endswith(".")] == []
    assert [path for path, field, _ in every if field.default_factory is not None] == []
    schema = PipelineConfig.model_json_schema()
    for definition in (schema, *schema["$defs"].values()):
        shown = {name for name, field in definition.get("properties", {}).items() if "default" in field}
        assert shown | set(definition.get("required", [])) == set(definition.get("properties", {}))


def test_the_quickstart_names_and_explains_every_field():
    text = QUICKSTART.read_text(encoding="utf-8")
    comments = [line.partition(" #")[2].strip() for line in text.splitlines()]
    explained: dict[str, str] = {}
    for path, line in _lines(yaml.compose(text)):
        explained[path] = explained.get(path) or comments[line]
    for path, _, inner in fields():
        if path not in explained:  # a field of an optional section stands in that section's comment
            section, _, name = path.rpartition(".")
            assert re.search(rf"\b{name}\b", explained[section]), path
        elif not inner:
            assert explained[path], f"{path} has no comment"


def _lines(node: yaml.Node, path: str = "") -> Iterator[tuple[str, int]]:
    """Path and line of every key; the items of a list go by the list's name."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _lines(item, path)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}".lstrip(".")
            yield inner, key.start_mark.line
            yield from _lines(value, inner)
