"""The contract with a source: what got worse stops the run, what did not goes on."""

import pytest
from conftest import write_jsonl

from tasks import contract
from tasks.config import CollectConfig, PipelineConfig, SourceConfig
from tasks.errors import SourceError
from tasks.store import Manifest

OLD = {"format": "alpaca", "columns": {"a": ["text"], "b": ["a number", "text"], "c": []}, "files": 1, "rows": 100}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"columns": OLD["columns"] | {"d": ["text"]}}, []),
        ({"columns": OLD["columns"] | {"a": [], "b": ["text"], "c": ["a list"]}}, []),
        ({"columns": {"a": ["text"], "b": ["text"]}}, ["column c is gone"]),
        ({"columns": {"b": ["text"], "c": [], "x": ["text"]}}, ["column a is gone (new: x; was it renamed?)"]),
        ({"columns": OLD["columns"] | {"a": ["a list", "text"]}}, ["column a holds a list and text, it held text"]),
        ({"format": "messages"}, ["format alpaca → messages"]),
        ({"rows": 50}, []),
        ({"rows": 49}, ["100 rows → 49, more than collect.max_shrink_ratio = 0.5 allows"]),
        ({"rows": 1000}, []),
    ],
)
def test_only_what_got_worse_is_a_difference(change, found):
    assert contract.differences(OLD, OLD | change, 0.5) == found


def manifest(config: CollectConfig, created: str, **figures: dict[str, object]) -> Manifest:
    """A manifest of collect, as far as the contract looks at it."""
    settings = config.model_dump(mode="json")
    return Manifest.model_construct(created=created, settings=settings, figures={"sources": figures})


def test_each_source_is_held_to_the_newest_artifact_that_read_it_with_the_same_settings():
    one, two = SourceConfig(path="one.jsonl"), SourceConfig(path="two.jsonl")
    limited = one.model_copy(update={"limit": 10})
    gone = OLD | {"columns": {"a": ["text"]}}
    known = [
        manifest(CollectConfig(sources=[one]), "2026-01-01", **{"one.jsonl": OLD | {"rows": 9000}}),
        manifest(CollectConfig(sources=[two, one]), "2026-01-03", **{"one.jsonl": OLD, "two.jsonl": OLD}),
        manifest(CollectConfig(sources=[limited]), "2026-01-04", **{"one.jsonl": OLD | {"format": "messages"}}),
        manifest(CollectConfig(sources=[two]), "2026-01-02", **{"two.jsonl": OLD | {"format": "messages"}}),
    ]
    both = CollectConfig(sources=[one, two])
    contract.hold(both, {"one.jsonl": OLD, "two.jsonl": OLD}, known)
    with pytest.raises(SourceError) as stop:
        contract.hold(both, {"one.jsonl": OLD | {"rows": 40}, "two.jsonl": gone}, known)
    for said in ("one.jsonl: 100 rows → 40", "two.jsonl: column b is gone", "two.jsonl: column c is gone"):
        assert said in str(stop.value)
    patient = both.model_copy(update={"max_shrink_ratio": 0.6})
    contract.hold(patient, {"one.jsonl": OLD | {"rows": 40}, "two.jsonl": OLD}, known)
    new = CollectConfig(sources=[SourceConfig(path="three.jsonl"), both.sources[0].model_copy(update={"task": "x"})])
    contract.hold(new, {"three.jsonl": gone, "one.jsonl": gone}, known)


ROWS = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(40)]


@pytest.fixture
def nightly(tmp_path):
    """Run collect as a nightly run does; returns what it published, or raises."""
    from flows.runtime import run_stage
    from tasks.plan import look_up
    from tasks.stages import STAGES
    from tasks.store import ArtifactStore

    def run(rows, base, **collect):
        path = write_jsonl(tmp_path / "nightly.jsonl", rows)
        config = PipelineConfig.model_validate({
            "model": {"base": str(base)}, "store": str(tmp_path / "artifacts"),
            "collect": {"sources": [{"path": str(path), "format": "alpaca"}], "max_reject_ratio": 1.0} | collect,
        })  # fmt: skip
        step = look_up(STAGES["collect"], config, {}, ArtifactStore(config.store))
        return run_stage(STAGES["collect"], config, step, {})

    return run


def test_a_changed_source_stops_the_run_publishes_nothing_and_can_be_accepted(tiny_base, tmp_path, nightly):
    nightly(ROWS, tiny_base)
    renamed = [{"instruction": row["instruction"], "context": "", "output": row["output"]} for row in ROWS]
    with pytest.raises(SourceError) as stop:
        nightly(renamed, tiny_base)
    for said in ("nightly.jsonl: column input is gone (new: context; was it renamed?)", "on_source_change: accept"):
        assert said in str(stop.value)
    with pytest.raises(SourceError, match="40 rows → 3"):
        nightly(ROWS[:3], tiny_base)
    assert len(list((tmp_path / "artifacts" / "collect").iterdir())) == 1, "the last good data stays"
    accepted = nightly(renamed, tiny_base, on_source_change="accept")
    assert accepted.rows_in == 40
    assert nightly(renamed[:30], tiny_base).rows_in == 30, "what was accepted is the contract now"
    with pytest.raises(SourceError, match="column context is gone"):
        nightly(ROWS[:35], tiny_base)


def test_a_source_that_changes_while_it_is_read_publishes_nothing(tiny_base, tmp_path, nightly, monkeypatch):
    from tasks import collect

    def meddling(*arguments):
        (tmp_path / "nightly.jsonl").open("a").write('{"instruction": "new", "output": "row"}\n')
        return real(*arguments)

    real = collect._collect_part
    monkeypatch.setattr(collect, "_collect_part", meddling)
    with pytest.raises(SourceError, match=r"source nightly\.jsonl: changed while it was read"):
        nightly(ROWS, tiny_base)
    assert not list((tmp_path / "artifacts").glob("collect/*"))
