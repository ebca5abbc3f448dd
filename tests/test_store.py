"""The artifact store: immutable, verified, and never a crash over what somebody did to its files."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from store_process import CONTENT, described, edited, publish

from tasks.disk import digest_file
from tasks.errors import LedgerError
from tasks.store import ArtifactStore, reference

FIRST, SECOND = sorted(CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def quarantined(store: ArtifactStore) -> int:
    return len(list(store.root.glob(".quarantine/*")))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A damage that leaves the manifest valid JSON, and where it is a manifest still, with its seal."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with suppress(ValidationError):
            edited(folder)

    return damage


def a_figure_is_edited(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    assert text.count('"seconds":') == 1
    (folder / "manifest.json").write_text(text.replace('"seconds":', '"seconds":1'))


def manifest_is(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_bytes(data)


def cut_behind_its_time(folder: Path) -> None:
    before = (folder / FIRST).stat()
    os.truncate(folder / FIRST, 5)
    os.utime(folder / FIRST, ns=(before.st_atime_ns, before.st_mtime_ns))


def torn(folder: Path) -> None:
    os.truncate(folder / "manifest.json", (folder / "manifest.json").stat().st_size // 2)


def folder_in_place_of_a_file(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()
    size = (folder / FIRST).stat().st_size
    in_manifest(lambda manifest: manifest["files"][0].update(size_bytes=size))(folder)


DAMAGES = {
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": manifest_is(b""),
    "manifest torn": torn,
    "manifest no JSON": manifest_is(b"{'stage': clean}"),
    "manifest no UTF-8": manifest_is(b"\xff\xfe"),
    "manifest too deep": manifest_is(b"[" * 100_000),
    "manifest of another shape": manifest_is(b"[]"),
    "a figure of the manifest is edited": a_figure_is_edited,
    "manifest with a wrong type": in_manifest(lambda manifest: manifest.update(rows_in="3")),
    "manifest with an unknown key": in_manifest(lambda manifest: manifest.update(surprise=1)),
    "manifest with another digest": in_manifest(lambda manifest: manifest.update(digest="0" * 64)),
    "manifest without one of its files": in_manifest(lambda manifest: manifest["files"].pop(0)),
    "file missing": lambda folder: (folder / FIRST).unlink(),
    "file empty": lambda folder: os.truncate(folder / FIRST, 0),
    "file cut short": lambda folder: os.truncate(folder / FIRST, 5),
    "file cut short behind the same time": cut_behind_its_time,
    "file with a flipped bit": lambda folder: flip_bit(folder / FIRST),
    "file turned into a folder": folder_in_place_of_a_file,
}


def test_what_was_published_is_found_with_everything_that_was_said_of_it(store):
    published = publish(store, "key")
    assert store.find("clean", "key") == published
    assert store.verify(reference(published))
    folder = store.path(reference(published))
    assert published.model_dump(include=set(described("key"))) == described("key")
    assert [(file.path, file.sha256, file.size_bytes, file.modified_ns) for file in published.files] == [
        (name, digest_file(folder / name), len(CONTENT[name]), (folder / name).stat().st_mtime_ns)
        for name in (FIRST, SECOND)
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", published.created)
    assert (folder / FIRST).read_bytes() == CONTENT[FIRST]
    assert list(store.manifests()) == list(store.manifests("clean")) == [published]
    assert list(store.manifests("split")) == []


def test_what_is_being_made_is_not_there_yet(store):
    with store.work_folder("clean", "key") as work:
        (work / "examples").mkdir()
        assert store.find("clean", "key") is None
        assert store.folders() == list(store.manifests()) == []


@pytest.mark.parametrize("lookup", ["find", "verify"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artifact_is_a_miss_in_quarantine_and_made_again(store, caplog, damage, lookup):
    published = publish(store, "key")
    damage(store.path(reference(published)))
    with caplog.at_level(logging.WARNING, "attune"):
        found = store.find("clean", "key") if lookup == "find" else store.verify(reference(published))
    assert not found
    assert str(store.path(reference(published))) in caplog.text
    assert quarantined(store) == 1
    assert store.folders() == []
    assert publish(store, "key").digest == published.digest
    assert store.verify(reference(published))


def test_a_flipped_bit_is_found_by_verify_even_behind_the_same_size_and_time(store):
    published = publish(store, "key")
    path = store.path(reference(published)) / SECOND
    before = path.stat()
    flip_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not store.verify(reference(published))
    assert quarantined(store) == 1


def test_a_file_that_the_manifest_does_not_know_is_found_by_verify(store):
    published = publish(store, "key")
    (store.path(reference(published)) / "examples" / "part-00001.parquet").write_bytes(b"more rows")
    assert not store.verify(reference(published))
    assert quarantined(store) == 1


@pytest.mark.parametrize("swapped", ["", FIRST], ids=["folders", "files"])
def test_two_artifacts_that_were_swapped_are_both_made_again(store, swapped):
    one, two = publish(store, "one"), publish(store, "two", {name: data.upper() for name, data in CONTENT.items()})
    paths = [store.path(reference(manifest)) / swapped for manifest in (one, two)]
    aside = store.root / "aside"
    for source, target in ((paths[0], aside), (paths[1], paths[0]), (aside, paths[1])):
        os.rename(source, target)
    assert store.find("clean", "one") is None
    assert not store.verify(reference(two))
    assert quarantined(store) == 2


def test_verify_of_what_is_gone_is_false(store):
    published = publish(store, "key")
    shutil.rmtree(store.path(reference(published)))
    assert not store.verify(reference(published))
    assert quarantined(store) == 0


def test_a_copied_store_is_still_a_hit(store, tmp_path):
    published = publish(store, "key")
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copied = ArtifactStore(tmp_path / "copy")
    time_of_copy = (copied.path(reference(published)) / FIRST).stat().st_mtime_ns
    assert time_of_copy != published.files[0].modified_ns
    assert copied.find("clean", "key") == published
    assert copied.verify(reference(published))


def test_an_artifact_that_lost_or_invented_rows_is_not_published(store):
    for rows_kept in (1, 3):
        with pytest.raises(LedgerError, match=f"clean: 3 rows in, but {rows_kept} kept and 1 rejected"):
            publish(store, "key", rows_kept=rows_kept)
        assert store.find("clean", "key") is None


def test_equal_content_has_an_equal_digest_whatever_it_was_made_from(store):
    one = publish(store, "one")
    two = publish(store, "two", settings={"duplicates": "keep_all"}, inputs={"collect": "9" * 64}, seconds=9.0)
    other_rejected = publish(store, "rejected", {FIRST: CONTENT[FIRST], SECOND: CONTENT[SECOND][::-1]})
    renamed = publish(store, "renamed", {"examples/part-00001.parquet": CONTENT[FIRST], SECOND: CONTENT[SECOND]})
    altered = publish(store, "altered", {FIRST: CONTENT[FIRST][::-1], SECOND: CONTENT[SECOND]})
    assert one.digest == two.digest == other_rejected.digest
    assert len({one.digest, renamed.digest, altered.digest}) == 3


def test_the_first_of_two_that_made_the_same_key_stands(store):
    first = publish(store, "key", seconds=1.0)
    assert publish(store, "key", {"examples/other.parquet": b"other"}, seconds=2.0) == first
    assert store.verify(reference(first))
    assert [path.name for path in (store.root / ".work").iterdir()] == ["clean-key.lock"]


def test_only_resume_outlives_a_killed_run_and_is_never_published(store):
    with store.work_folder("clean", "key") as work:
        (work / "resume").mkdir()
        (work / "resume" / "weights").write_bytes(b"1")
        (work / "half").write_bytes(b"2")
        (work / "dangling").symlink_to("nowhere")
    with store.work_folder("clean", "key") as work:
        assert [path.name for path in work.iterdir()] == ["resume"]
        assert (work / "resume" / "weights").read_bytes() == b"1"
    published = publish(store, "key")
    assert [file.path for file in published.files] == [FIRST, SECOND]
    assert store.verify(reference(published))
    assert [path.name for path in (store.root / ".work").iterdir()] == ["clean-key.lock"]


def test_unreadable_artifacts_are_passed_over_in_lists_but_still_shown_to_who_verifies_all(store):
    published = publish(store, "key")
    publish(store, "broken")
    (store.root / "clean" / "broken" / "manifest.json").write_text("{")
    assert list(store.manifests()) == [published]
    assert store.folders() == [store.root / "clean" / "broken", store.root / "clean" / "key"]


def test_an_audit_reads_every_byte_of_every_artifact(store):
    publish(store, "one")
    path = store.path(reference(publish(store, "two"))) / SECOND
    before = path.stat()
    flip_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(store.audit()) == [True, False]
    assert list(store.audit()) == [True]


def test_all_is_on_disk_before_it_becomes_visible(store, monkeypatch):
    """A power cut is not a kill: what was not synced before the rename may be gone behind a manifest that stands."""
    events = []
    rename, fsync = os.rename, os.fsync

    def note_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    publish(store, "key")
    files, folders, after = events[:2], events[3:-2], events[-2:]
    assert files == ["part-00000.parquet", "part-00000.parquet"]
    assert events[2] == "manifest.json"
    assert set(folders) == {"examples", "rejected", "clean-key"}
    assert after == ["rename", "clean"]
