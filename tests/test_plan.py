"""The plan: what would run, what is cached, and the reason in words that a person can act on."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROWS, write_jsonl
from safetensors.numpy import save_file

from tasks import fingerprint
from tasks.config import CleanConfig, PipelineConfig, SplitConfig
from tasks.errors import AttuneError, ModelError, SourceError
from tasks.layout import SPLITS
from tasks.placing import by_hash
from tasks.plan import Step, plan
from tasks.stages import STAGES
from tasks.store import ArtifactStore, Manifest

NAMES = list(STAGES)
COUNTS = {"rows_in": 1, "rows_kept": 1, "rejected": {}, "figures": {}, "seconds": 1.0, "peak_memory_bytes": 1}


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """A config over a small source and a base model whose files are whole, but which nobody can run."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"architectures": ["NoForCausalLM"]}')
    (base / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(4)}, base / "model.safetensors")
    sources = [{"path": str(write_jsonl(tmp_path / "colours.jsonl", ROWS))}]
    return {"model": {"base": str(base)}, "collect": {"sources": sources}, "store": str(tmp_path / "artifacts")}


@pytest.fixture
def code_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code that the keys are made of, to edit."""
    shutil.copytree(fingerprint.ROOT / "tasks", tmp_path / "code" / "tasks")
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path / "code")
    fingerprint._read.cache_clear()
    yield tmp_path / "code"
    fingerprint._read.cache_clear()


def steps(raw: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Step]:
    """The plan for a config with some sections changed, by stage."""
    changed = {name: raw.get(name, {}) | section for name, section in sections.items()}
    config = PipelineConfig.model_validate(raw | changed)
    return {step.stage.name: step for step in plan(config, ArtifactStore(config.store))}


def publish(raw: dict[str, Any], step: Step, content: Any = None, **parts: Any) -> None:
    """Leave the artifact that a stage would; without `content`, all that its key is made of decides its content."""
    store = ArtifactStore(raw["store"])
    with store.work_folder(step.stage.name, step.key) as work:
        (work / "part-00000.parquet").write_text(json.dumps(content or step.parts, sort_keys=True))
        own = {"stage": step.stage.name, "key": step.key, "created_by": "attune 0.1.0"}
        own["pipeline"] = raw.get("name", "pipeline")
        store.commit(work, own | COUNTS | step.parts | parts)


def publish_all(raw: dict[str, Any], content: Any = None, **sections: dict[str, Any]) -> dict[str, Step]:
    """Run the whole pipeline, as far as the plan can tell."""
    for name in NAMES:
        step = steps(raw, **sections)[name]
        assert step.key
        if step.manifest is None:
            publish(raw, step, content and content + name)
    done = steps(raw, **sections)
    assert [done[name].why for name in NAMES] == ["cached"] * len(NAMES)
    return done


def whys(raw: dict[str, Any], **sections: dict[str, Any]) -> dict[str, str]:
    """Why each stage that is not cached would run."""
    return {name: step.why for name, step in steps(raw, **sections).items() if step.manifest is None}


def waits(*names: str) -> dict[str, str]:
    """The reason of stages behind the first of `names`, which must run."""
    behind = NAMES[NAMES.index(names[0]) + 1 :]
    first = {name: next(one for one in STAGES[name].inputs if one in (*names, *behind)) for name in behind}
    return {name: f"waits for {first[name]}" for name in behind}


def test_an_empty_store_knows_one_key_and_equal_inputs_give_equal_keys(raw, tmp_path):
    first = steps(raw)
    assert (first["collect"].why, first["collect"].ref) == ("never ran", None)
    assert whys(raw) == {"collect": "never ran"} | waits("collect")
    assert [step.key for step in first.values()][1:] == [""] * 6
    done = publish_all(raw)
    elsewhere = publish_all(raw | {"store": str(tmp_path / "elsewhere"), "name": "other", "runs": "other"})
    assert [step.key for step in done.values()] == [step.key for step in elsewhere.values()]
    assert len({step.key for step in done.values()}) == len(NAMES)


@pytest.mark.parametrize(
    ("section", "change", "first", "why"),
    [
        ("fine_tune", {"learning_rate": 3e-4}, "fine_tune", "learning_rate: 0.0002 → 0.0003"),
        ("fine_tune", {"seed": 1, "epochs": 1.0}, "fine_tune", "epochs: 3.0 → 1.0; seed: 0 → 1"),
        ("evaluate", {"max_rows": 9}, "evaluate", "max_rows: None → 9"),
        ("split", {"seed": 1}, "split", "seed: 0 → 1"),
        ("clean", {"filters": [{"name": "empty"}]}, "clean", "filters.1.name is gone; "),
        ("export", {"parity_rows": 1}, "export", "parity_rows: 64 → 1"),
    ],
)
def test_a_setting_changes_the_key_of_its_own_stage_and_the_reason_names_it(raw, section, change, first, why):
    before = publish_all(raw)
    after = steps(raw, **{section: change})
    at = NAMES.index(first)
    assert [after[name].key for name in NAMES[:at]] == [before[name].key for name in NAMES[:at]]
    assert all(after[name].ref == before[name].ref for name in NAMES[:at])
    assert after[first].key != before[first].key
    reasons = whys(raw, **{section: change})
    if first == "clean":
        assert reasons[first].startswith(why)
        why = reasons[first]
    assert reasons == {first: why} | waits(first)


def test_a_new_parameter_of_a_filter_is_named(raw):
    publish_all(raw)
    filters = [{"name": chosen.name} for chosen in CleanConfig().filters]
    filters[4]["params"] = {"max_chars": 9}
    assert whys(raw, clean={"filters": filters})["clean"] == "filters.4.params.max_chars set to 9"


def test_changed_data_and_changed_weights_are_named(raw, tmp_path):
    publish_all(raw)
    save_file({"weight": np.ones(4)}, tmp_path / "base" / "model.safetensors")
    reasons = {"fine_tune": "base model changed", "evaluate": "waits for fine_tune", "export": "waits for fine_tune"}
    assert whys(raw) == reasons
    (tmp_path / "base" / "tokenizer.json").write_text('{"version": "2"}')
    assert whys(raw)["format"] == "base tokenizer changed"
    with (tmp_path / "colours.jsonl").open("a") as file:
        file.write("{}\n")
    assert whys(raw) == {"collect": "source colours.jsonl changed"} | waits("collect")
    more = [*raw["collect"]["sources"], {"path": str(write_jsonl(tmp_path / "more.jsonl", ROWS))}]
    assert "source more.jsonl is new" in whys(raw, collect={"sources": more})["collect"]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"versions": {"pyarrow": "1.0"}}, "pandas is new"),
        ({"inputs": {"collect": "0" * 64}}, "collect changed"),
        ({"code": {}}, "tasks.clean is new"),
    ],
)
def test_another_version_input_or_code_is_named(raw, parts, why):
    publish(raw, steps(raw)["collect"])
    old = steps(raw)["clean"]
    publish(raw, Step(old.stage, old.parts | parts, "0" * 32, None, ""))
    assert why in whys(raw)["clean"].split("; ")
    if "versions" in parts:
        assert f"pyarrow 1.0 → {old.parts['versions']['pyarrow']}" in whys(raw)["clean"]


def test_edited_code_is_named_and_only_the_stages_that_use_it_run(raw, code_copy):
    publish_all(raw, content="what it was before ")
    with (code_copy / "tasks" / "filters" / "answers.py").open("a") as file:
        file.write("\n\ndef newer() -> int:\n    return 1\n")
    fingerprint._read.cache_clear()
    assert whys(raw) == {"clean": "code of tasks.filters.answers changed"} | waits("clean")


def test_of_several_older_artifacts_the_most_similar_is_compared_with(raw):
    publish_all(raw)
    publish_all(raw, split={"seed": 5, "test": 0.3, "validation": 0.3})
    assert whys(raw, split={"seed": 6, "test": 0.3, "validation": 0.3})["split"] == "seed: 5 → 6"
    assert whys(raw, split={"seed": 6})["split"] == "seed: 0 → 6"


def test_the_same_rows_from_another_setting_run_nothing_that_follows(raw):
    publish_all(raw, content="the same rows whatever the settings: ")
    kept_all = {"clean": {"duplicates": "keep_all"}}
    assert whys(raw, **kept_all) == {"clean": "duplicates: 'keep_first' → 'keep_all'"} | waits("clean")
    publish(raw, steps(raw, **kept_all)["clean"], "the same rows whatever the settings: clean")
    assert whys(raw, **kept_all) == {}


def test_what_is_missing_outside_is_told_before_anything_runs(raw, tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        steps(raw, collect={"sources": [{"path": str(tmp_path / "missing.jsonl")}]})
    with pytest.raises(ModelError, match="there is no folder"):
        steps(raw, model={"base": str(tmp_path / "missing")})


def grow(raw, tmp_path) -> None:
    """The source gets a row, and the stages before split have run."""
    with (tmp_path / "colours.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    for name in ("collect", "clean"):
        publish(raw, steps(raw)[name])


def test_split_remembers_the_last_split_of_its_pipeline_and_is_found_again(raw, tmp_path):
    first = publish_all(raw)["split"]
    assert (first.memory, "previous" in first.parts["inputs"]) == (None, False)
    grow(raw, tmp_path)
    second = steps(raw)["split"]
    assert second.memory == first.ref and second.parts["inputs"]["previous"] == first.ref.digest
    assert "the last split, which it remembers, is another" in second.why and "clean changed" in second.why
    publish(raw, second)
    again = steps(raw)["split"]
    assert (again.key, again.why) == (second.key, "cached"), "it does not remember itself"
    patient = steps(raw, split={"max_leak_ratio": 0.5})["split"]
    assert patient.memory == again.ref, "with the same inputs, but for a setting that only says when to stop, it does"
    grow(raw, tmp_path)
    third = steps(raw)["split"]
    assert third.memory == again.ref
    assert steps(raw | {"name": "other"})["split"].memory is None, "another pipeline has its own memory"
    assert steps(raw, split={"seed": 1})["split"].memory is None, "and so have other settings"
    patient = steps(raw, split={"max_leak_ratio": 0.5})["split"]
    assert patient.memory == again.ref, "but not one that only says when to stop"


def test_a_split_by_other_code_or_other_versions_remembers_the_last_one_too(raw, code_copy):
    first = publish_all(raw)["split"]
    with (code_copy / "tasks" / "placing.py").open("a") as file:
        file.write("\n\ndef newer() -> int:\n    return 1\n")
    fingerprint._read.cache_clear()
    second = steps(raw)["split"]
    assert (second.manifest, second.memory) == (None, first.ref)
    publish(raw, second)
    last = steps(raw)["split"]
    old = Step(last.stage, last.parts | {"versions": {"numpy": "1.0", "pyarrow": "1.0"}}, "0" * 32, None, "")
    publish(raw, old, "made by older libraries")
    assert steps(raw)["split"].memory.key == old.key


def test_a_damaged_split_is_made_again_with_the_same_memory(raw, tmp_path):
    publish_all(raw)
    grow(raw, tmp_path)
    second = steps(raw)["split"]
    publish(raw, second)
    store = ArtifactStore(raw["store"])
    (store.path(steps(raw)["split"].ref) / "part-00000.parquet").write_text("damaged")
    after = steps(raw)["split"]
    assert (after.key, after.manifest, after.memory) == (second.key, None, second.memory)


def test_a_memory_that_is_gone_is_not_asked_for(raw, tmp_path):
    first = publish_all(raw)["split"]
    grow(raw, tmp_path)
    publish(raw, steps(raw)["split"])
    store = ArtifactStore(raw["store"])
    shutil.rmtree(store.path(first.ref))
    second = steps(raw)["split"]
    assert second.why == "cached"
    (store.path(second.ref) / "part-00000.parquet").write_text("damaged")
    alone = steps(raw)["split"]
    assert (alone.memory, "previous" in alone.parts["inputs"]) == (None, False)


def test_benchmarks_and_tokenizers_of_filters_count_by_their_content(raw, tmp_path):
    exam = write_jsonl(tmp_path / "exam.jsonl", [{"text": "What is it?"}])
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    section = {
        "decontaminate": {"against": [str(exam)]},
        "filters": [{"name": "too_many_tokens", "params": {"tokenizer": str(tokenizer)}}],
    }
    publish_all(raw, clean=section)
    exam.write_text('{"text": "Who is it?"}\n')
    assert whys(raw, clean=section)["clean"] == f"benchmark {exam} changed"
    tokenizer.write_text('{"version": "2"}')
    assert whys(raw, clean=section)["clean"] == f"benchmark {exam} changed; tokenizer {tokenizer} changed"
    exam.unlink()
    with pytest.raises(SourceError, match="exam"):
        steps(raw, clean=section)


def test_of_many_differences_the_first_are_told_and_the_others_counted(raw):
    publish_all(raw)
    other = {"template": "plain", "max_seq_length": 64, "packing": False}
    assert "more" not in whys(raw, format=other)["format"]
    many = {"learning_rate": 1e-3, "epochs": 1.0, "seed": 1, "warmup_ratio": 0.1, "weight_decay": 0.1, "max_steps": 3}
    many |= {"lr_scheduler": "linear", "max_grad_norm": 2.0, "label_smoothing": 0.1, "precision": "fp32"}
    why = whys(raw, fine_tune=many)["fine_tune"]
    assert why.count("; ") == 8 and why.endswith("; and 2 more")


TEXT = " ".join(f"w{number}" for number in range(30))


@pytest.fixture
def night(raw, tmp_path, tiny_base, monkeypatch):
    """Run collect, clean and split as a nightly run does, but for Prefect's server; returns the manifest of split."""
    from flows import runtime
    from flows.runtime import Run, as_task

    def plain(task):
        return lambda *arguments, return_state: task.fn(*arguments)

    monkeypatch.setattr(runtime, "_TASKS", {name: plain(task) for name, task in runtime._TASKS.items()})
    call = {name: as_task(STAGES[name]) for name in ("collect", "clean", "split")}

    def run(rows: list[dict[str, str]], **sections: Any) -> Manifest:
        path = write_jsonl(tmp_path / "nightly.jsonl", rows)
        collect = {"sources": [{"path": str(path), "format": "alpaca"}]}
        own = {"collect": collect, "model": {"base": str(tiny_base)}, "runs": str(tmp_path / "runs")}
        run = Run(PipelineConfig.model_validate(raw | own | sections))
        run.refs["clean"] = call["clean"](run, call["collect"](run))
        return run.store.find("split", call["split"](run, run.refs["clean"]).key)

    return run


def damage(store: ArtifactStore, manifest: Manifest) -> None:
    """Flip a bit behind the manifest's back: size and modification time stay."""
    table = "train" if manifest.stage == "split" else "examples"
    path = next((store.root / manifest.stage / manifest.key / table).iterdir())
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_nightly_run_gives_split_its_memory_and_goes_back_to_an_older_one_where_that_is_damaged(night, raw):
    homes = {name: next(g for g in map(str, range(99)) if by_hash(g, SplitConfig()) == name) for name in SPLITS}
    filler = [{"instruction": f"Do {name}.", "output": f"{name} done", "group": homes[name]} for name in SPLITS]
    old = {"instruction": TEXT, "output": "old", "group": "old 1"}
    new = {"instruction": f"{TEXT} more", "output": "new", "group": "new"}
    assert [by_hash(row["group"], SplitConfig()) for row in (old, new)] == ["test", "train"]
    first = night([*filler, old])
    assert "previous" not in first.inputs and first.figures["test"] == 2
    assert first.figures["funnel"] == {"nightly.jsonl": {"rows_in": 4}}
    grown = [*filler[:2], new, old, filler[2]]
    config = {"clean": {"near_duplicates": {"policy": "keep_all"}}}
    second = night(grown, **config)
    assert (second.inputs["previous"], second.figures["test"]) == (first.digest, 3), "the new row follows the old one"
    store = ArtifactStore(raw["store"])
    damage(store, second)
    third = night([*grown, {"instruction": "One more.", "output": "row"}], **config)
    assert third.inputs["previous"] == first.digest
    damage(store, first)
    damage(store, third)
    fourth = night([*grown, {"instruction": "Two more.", "output": "rows"}], **config)
    assert "previous" not in fourth.inputs
    assert len(list((store.root / ".quarantine").iterdir())) == 3


def test_an_input_that_is_damaged_is_made_again_before_it_is_read(night, raw):
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "group": str(n)} for n in range(90)]
    first = night(rows)
    store = ArtifactStore(raw["store"])
    [cleaned] = store.manifests("clean")
    damage(store, cleaned)
    again = night(rows, split={"seed": 1})
    assert again.inputs == first.inputs and len(list((store.root / ".quarantine").iterdir())) == 1


def test_what_another_run_made_meanwhile_is_taken(raw, tmp_path, tiny_base):
    from flows.runtime import run_stage

    config = PipelineConfig.model_validate(raw | {"model": {"base": str(tiny_base)}})
    step = steps(raw, model={"base": str(tiny_base)})["collect"]
    assert not run_stage(step.stage, config, step, {}).cached
    again = run_stage(step.stage, config, step, {})
    assert (again.cached, again.why) == (True, "another run made it meanwhile")


def test_a_stage_works_on_the_engine_of_the_config(raw, tmp_path, tiny_base):
    from flows.runtime import run_stage

    own = raw | {"model": {"base": str(tiny_base)}, "engine": {"kind": "ray", "address": "127.0.0.1:1"}}
    config = PipelineConfig.model_validate(own)
    step = steps(own)["collect"]
    with pytest.raises(AttuneError, match="engine"):
        run_stage(step.stage, config, step, {})
    assert not list(tmp_path.glob("artifacts/collect/*")), "nothing was published"
