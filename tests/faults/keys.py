"""What decides a result is part of its key: versions of libraries, and code that a stage calls (F31, F32)."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from faults.damage import House
from faults.kills import environment, written
from faults.matrix import ROOT, Outcome, fault, sample
from faults.pipeline import settings
from tasks import fingerprint
from tasks.plan import look_up
from tasks.stages import STAGES

FAKE = "99.0.1"


@contextmanager
def installed(folder: Path, library: str) -> Iterator[None]:
    """As if another version of a library were installed: its dist-info, before all others."""
    info = folder / library / f"{library.replace('-', '_')}-{FAKE}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: {FAKE}\n")
    with mock.patch.object(sys, "path", [str(folder / library), *sys.path]):
        yield


def missed(house: House) -> dict[str, str]:
    """The stages that would run if their inputs were the same, and why."""
    steps = [
        look_up(stage, house.config, {n: house.refs[n] for n in stage.inputs}, house.store) for stage in STAGES.values()
    ]
    return {step.stage.name: step.why for step in steps if step.manifest is None}


@fault("F31", "another version of a library installed")
def other_version(folder: Path) -> Outcome:
    """The stages that depend on it run again and name it, no others; once through `attune check`."""
    house, outcome = House.build(folder), Outcome()
    for library in sample(sorted({library for stage in STAGES.values() for library in stage.versions})):
        with outcome.attempt(library):
            was = importlib.metadata.version(library).partition("+")[0]
            with installed(folder, library):
                found = missed(house)
            assert set(found) == {stage.name for stage in STAGES.values() if library in stage.versions}
            assert all(f"{library} {was} → {FAKE}" in why for why in found.values()), found
            assert missed(house) == {}
    with outcome.attempt("attune check"):
        config = written(settings(folder) | {"store": str(house.store.root)}, folder / "config.yaml")
        with installed(folder / "check", "pyarrow"):
            table = _plan(config, folder, f"{folder / 'check' / 'pyarrow'}:{ROOT}")
        assert f"→ {FAKE}" in table and "cached" not in table, table
    return outcome


def _plan(config: Path, home: Path, path: str) -> str:
    """What `attune check` says would run; its code and libraries from `path` first."""
    command = [sys.executable, "-m", "flows.cli", "check", str(config)]
    env = environment(home) | {"PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.partition("Plan")[2]


@fault("F32", "a helper edited, not the stage")
def edited_helper(folder: Path) -> Outcome:
    """Every module that any stage calls, in a copy of the tree: the stages that call it run again, no others."""
    house, outcome = House.build(folder), Outcome()
    copy = folder / "copy"
    for name in ("tasks", "flows"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    users = {name: set(fingerprint.code_digests(stage.module)) for name, stage in STAGES.items()}
    with mock.patch.object(fingerprint, "ROOT", copy):
        for module in sample(sorted(set().union(*users.values()) - {stage.module for stage in STAGES.values()})):
            with outcome.attempt(module), _edited(copy.joinpath(*module.split("."))):
                found = missed(house)
                assert set(found) == {name for name in users if module in users[name]}
                assert all(why.startswith(f"code of {module} changed") for why in found.values()), found
    fingerprint._read.cache_clear()
    with outcome.attempt("attune check"):
        config = written(settings(folder) | {"store": str(house.store.root)}, folder / "config.yaml")
        with _edited(copy / "tasks" / "ledger"):
            table = _plan(config, folder, str(copy))
        assert "code of tasks.ledger changed" in " ".join(table.split()), table
    return outcome


@contextmanager
def _edited(module: Path) -> Iterator[None]:
    """The last line of its last function does something else."""
    path = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    honest = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(honest)) if isinstance(node, ast.FunctionDef)]
    lines = honest.splitlines()
    if functions:
        last = functions[-1].body[-1]
        lines.insert(last.lineno - 1, " " * last.col_offset + "str(0)")
    path.write_text("\n".join([*lines, "" if functions else "edited = 0"]), encoding="utf-8")
    fingerprint._read.cache_clear()
    try:
        yield
    finally:
        path.write_text(honest, encoding="utf-8")
        fingerprint._read.cache_clear()
