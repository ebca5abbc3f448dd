"""Configs and names that want out, or want code to run (F51, F52)."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from faults import pipeline
from faults.matrix import ROOT, Outcome, fault, sample, tries
from faults.pipeline import in_store, run
from flows.runtime import run_stage
from tasks.config_file import load
from tasks.errors import AttuneError, ConfigError
from tasks.plan import look_up
from tasks.run_record import RunFolder
from tasks.stages import STAGES
from tasks.store import ArtifactStore

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
PIECES = ["..", ".", "/", "\\", "~", "etc", "passwd", "file://", "file:", "s3:", "%2e%2e", "\0", " ", "\n", "a", "ü"]
FIELDS = ["name", "collect.sources.0.name", "collect.sources.0.path", "collect.sources.0.task", "model.base"]
FIELDS += ["model.revision", "format.template", "export.formats.0", "fine_tune.accelerate", "model.architecture"]
FIELDS += ["clean.filters.0.name", "evaluate.metrics.0", "clean.decontaminate.against.0", "extends"]


def searched(check: Callable[..., None], examples: int) -> None:
    """Let hypothesis call a check so often; what it finds is raised."""
    options = settings(
        max_examples=examples, database=None, deadline=None, derandomize=True, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    options(check)()


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `section.field`, making what is missing on the way."""
    section, *rest = path.split(".")
    node: Any = raw
    for following in rest:
        fresh: Any = [{}] if following.isdecimal() else {}
        node = node[int(section)] if isinstance(node, list) else node.setdefault(section, fresh)
        section = following
    node[int(section) if isinstance(node, list) else section] = value


@contextmanager
def nothing_changes_in(outside: Path) -> Iterator[None]:
    """Raises AssertionError when a file in a folder is written, made, moved or removed."""
    before = _seen(outside)
    yield
    assert _seen(outside) == before, f"something was written outside: {set(_seen(outside)) ^ set(before)}"


def _seen(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [folder, *folder.rglob("*")]
        if folder / "root" not in (path, *path.parents) and path != folder
    }


@fault("F51.config", "`../`, absolute paths, links and file:// in a config and its names")
def paths(folder: Path) -> Outcome:
    """Whatever a config says, it is refused, or nothing is written outside of its store and its runs."""
    outcome, ended = Outcome(), Counter()
    root = folder / "root"
    raw = pipeline.settings(root)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "precious.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    targets = [str(outside), f"{outside}/new", "../outside/x", "../../outside/x", f"file://{outside}/precious.jsonl"]
    targets += [f"{outside}/precious.jsonl", "link/x", "package:../..", "package:os/../../x"]
    (root / "link").symlink_to(outside)
    words = st.one_of(st.sampled_from(targets), st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join))

    @given(field=st.sampled_from(FIELDS), word=words)
    def check(field: str, word: str) -> None:
        with outcome.attempt(f"{field}: {word!r}"), nothing_changes_in(folder):
            ended[_tried(root, raw, field, word)] += 1

    here = os.getcwd()
    os.chdir(root)
    try:
        searched(check, tries(300, least=30))
    finally:
        os.chdir(here)
    outcome.figures = dict(ended)
    return outcome


def _tried(root: Path, raw: dict[str, Any], field: str, word: str) -> str:
    """Load a config with that word, and run its first stage; how far it came."""
    hostile = yaml.safe_load(yaml.safe_dump(raw))
    put(hostile, field, word)
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(hostile))
    try:
        config = load(path)
        RunFolder(config.runs, config.name, config.model_dump(mode="json"))
        step = look_up(STAGES["collect"], config, {}, ArtifactStore(config.store))
        run_stage(STAGES["collect"], config, step, {})
    except ConfigError:
        return "refused by the config"
    except AttuneError:
        return "refused by the stage"
    return "ran"


LINKS = {
    "the work folder": lambda store, step: store / ".work" / f"{step.stage.name}-{step.key}",
    "a file in the work folder": lambda store, step: store / ".work" / f"{step.stage.name}-{step.key}" / "examples",
    "checkpoints set aside": lambda store, step: store / ".work" / f"{step.stage.name}-{step.key}.resume",
    "the artifact": lambda store, step: store / step.stage.name / step.key,
}


@fault("F51.links", "a link planted in the store")
def links(folder: Path) -> Outcome:
    """Where it leads nothing is written and nothing removed, and the run ends with its own artifacts."""
    outcome = Outcome()
    raw, outside = pipeline.settings(folder), folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (outside / "folder").mkdir()
    (outside / "folder" / "precious").write_text("precious")
    refs = run(in_store(raw, folder / "golden" / "artifacts"))
    for number, (what, place) in enumerate(sample(list(LINKS.items()))):
        with outcome.attempt(what):
            config = in_store(raw, folder / str(number) / "artifacts")
            step = look_up(STAGES["collect"], config, {}, ArtifactStore(config.store))
            link = place(Path(config.store), step)
            link.parent.mkdir(parents=True)
            link.symlink_to(outside)
            before = _seen(outside)
            again = run(config)
            assert _seen(outside) == before, "something outside was changed"
            assert again == refs
    return outcome


TAGS = ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [[{}]]", "!!python/name:os.mkdir {}"]
TAGS += ["!!python/module:os", "!!python/object/apply:subprocess.check_call [[mkdir, {}]]", "!!binary aGk="]
TAGS += [
    "!!set {{a}}",
    "!!timestamp 2020-13-45",
    "!!float x",
    "!!int 0x",
    "!foo bar",
    "!!omap [a: 1]",
    "&a [*a]",
    "{{<<: 1}}",
]
TAGS += ["? [a]"]
ODD = [None, True, -1, 0, 10**30, 1e308, float("inf"), float("nan"), "", "x" * 5_000, [], [[]], {}, {"a": {"b": []}}]
ODD += [{"name": "empty"}, [None], [1, "a"], b"bytes", "2020-01-01", "\ud800", "☃", "../x", ["huggingface"] * 3]


@fault("F52", "YAML tags, wrong types and unknown keys in a config")
def odd_configs(folder: Path) -> Outcome:
    """A config is refused with ConfigError, or it is valid; no tag runs anything."""
    outcome, ended, marker = Outcome(), Counter(), folder / "marker"
    quickstart = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    text = yaml.safe_dump(quickstart)
    every = [path for path, _ in _places(quickstart)]
    place = st.sampled_from(every)
    names = st.one_of(st.text(max_size=12), st.sampled_from(["extends", "store", "epochs", "__class__", "1"]))

    @given(place=place, value=st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20))
    def wrong_type(place: tuple[Any, ...], value: Any) -> None:
        attempt(f"{place} is {value!r:.40}", yaml.dump(_changed(quickstart, place, value)))

    @given(place=place, tag=st.sampled_from(TAGS))
    def tagged(place: tuple[Any, ...], tag: str) -> None:
        whole = yaml.safe_dump(_changed(quickstart, place, "HERE"))
        attempt(f"{place} is {tag}", whole.replace("HERE", tag.format(marker)))

    @given(place=place, name=names)
    def unknown(place: tuple[Any, ...], name: str) -> None:
        attempt(f"{name!r} beside {place}", yaml.safe_dump(_changed(quickstart, (*place[:-1], name), 1)))

    @given(seed=st.integers(), noise=st.text(alphabet="{}[]:,-&*!|>'\"#%@`\n\t \0aé☃", min_size=1, max_size=6))
    def noisy(seed: int, noise: str) -> None:
        at = random.Random(seed).randrange(len(text))  # noqa: S311
        attempt(f"{noise!r} at {at}", text[:at] + noise + text[at + len(noise) :])

    def attempt(what: str, content: str) -> None:
        with outcome.attempt(what):
            path = folder / "config.yaml"
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            ended[_loaded(path)] += 1
            assert not marker.exists(), "a tag ran code"

    for check in (wrong_type, tagged, unknown, noisy):
        searched(check, tries(500, least=50))
    outcome.figures = dict(ended)
    return outcome


def _loaded(path: Path) -> str:
    """Whether a config is valid or refused; any other error is raised."""
    try:
        load(path)
    except ConfigError:
        return "refused"
    return "valid"


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place in nested mappings and lists, and what is there."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key), value
        if isinstance(value, (dict, list)):
            yield from _places(value, (*path, key))


def _changed(raw: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value changed."""
    copy = dict(raw) if isinstance(raw, dict) else list(raw)
    first, *rest = path
    if isinstance(copy, list) and not isinstance(first, int):
        return {first: value}
    copy[first] = _changed(copy[first], tuple(rest), value) if rest else value
    return copy
