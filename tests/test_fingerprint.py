"""Digests of code: a line that could change a stage's rows changes its key, a comment does not."""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tasks import fingerprint
from tasks.stages import STAGES


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code, to edit."""
    shutil.copytree(fingerprint.ROOT / "tasks", tmp_path / "tasks")
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    fingerprint._read.cache_clear()
    yield tmp_path / "tasks"
    fingerprint._read.cache_clear()


def changed(path: Path, old: str, new: str, module: str) -> set[str]:
    """The names whose digests, among those of `module`, change with an edit of a file."""
    before = fingerprint.code_digests(module)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    fingerprint._read.cache_clear()
    after = fingerprint.code_digests(module)
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_the_copy_has_the_digests_of_the_original(code, monkeypatch):
    copied = {name: fingerprint.code_digests(stage.module) for name, stage in STAGES.items()}
    monkeypatch.undo()
    fingerprint._read.cache_clear()
    assert {name: fingerprint.code_digests(stage.module) for name, stage in STAGES.items()} == copied
    assert all(stage.module in copied[name] for name, stage in STAGES.items())
    assert not any(set(digests) & fingerprint.NOT_CODE for digests in copied.values())


@pytest.mark.parametrize(
    ("file", "old", "new", "module", "expected"),
    [
        ("clean.py", "REPAIRED_SAMPLES = 100", "REPAIRED_SAMPLES = 1", "tasks.clean", {"tasks.clean"}),
        ("ledger.py", "SHARD_ROWS = 50_000", "SHARD_ROWS = 1", "tasks.clean", {"tasks.ledger"}),
        ("schema.py", "-100", "-1", "tasks.collect", {"tasks.schema"}),
        ("sources/row.py", 'reason: str = ""', 'reason: str = "?"', "tasks.collect", {"tasks.sources.row"}),
        ("sources/delimited.py", "strict=True", "strict=False", "tasks.collect", {"tasks.sources.delimited"}),
        ("metrics/rouge_l.py", "fmeasure", "recall", "tasks.evaluate", {"tasks.metrics.rouge_l"}),
        ("metrics/newer.py", "", "newer = 1", "tasks.evaluate", {"tasks.metrics.newer"}),
        ("filters/lengths.py", "< min_tokens", "<= min_tokens", "tasks.clean", {"tasks.filters.lengths"}),
        ("filters/lengths.py", "< min_tokens", "<= min_tokens", "tasks.split", set()),
        ("packing.py", "capacity + 1", "capacity + 2", "tasks.format", {"tasks.packing"}),
    ],
)
def test_an_edit_changes_the_digests_of_what_uses_it(code, file, old, new, module, expected):
    assert changed(code / file, old, new, module) == expected


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("clean.py", "\n\n\n", "\n\n\n# Why.\n\n\n\n"),
        ("ledger.py", "SHARD_ROWS = 50_000", "SHARD_ROWS = (\n    50000  # rows\n)"),
        ("errors.py", "Exit code 1.", "Exit code one."),
        ("config/data.py", "keep_first", "keep_one"),
    ],
)
def test_comments_layout_messages_and_defaults_change_nothing(code, file, old, new):
    assert changed(code / file, old, new, "tasks.clean") == set()


def test_versions_are_those_installed_without_the_mark_of_a_build():
    found = fingerprint.versions(("pyarrow", "torch"))
    assert found == {"pyarrow": version("pyarrow"), "torch": version("torch").partition("+")[0]}
