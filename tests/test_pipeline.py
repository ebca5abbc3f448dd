"""The whole flow, through Prefect, as a user starts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROWS, write_jsonl
from safetensors.torch import load_file, save_file

from tasks.run_record import RunRecord
from tasks.schema import HISTORY, PREDICTION, TOKENIZED
from tasks.stages import STAGES
from tasks.store import ArtifactStore

NOT_NEEDED_WHEN_CACHED = {"torch", "transformers", "evaluate", "datasets", "prefect", "pandas", "pyarrow"}


def attune(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in a process of its own."""
    command = [str(Path(sys.executable).with_name("attune")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=280, check=False)


def record_of(result: subprocess.CompletedProcess[str], config: Path) -> RunRecord:
    runs = Path(yaml.safe_load(config.read_text())["runs"])
    return RunRecord.model_validate_json((runs / "latest" / "run.json").read_bytes())


def edited(config: Path, name: str, **sections: dict[str, object]) -> Path:
    """A copy of a config with other settings, as a file beside it."""
    raw = yaml.safe_load(config.read_text())
    for section, settings in sections.items():
        raw.setdefault(section, {}).update(settings)
    path = config.with_name(name)
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def config(home: Path, tiny_base: Path) -> Path:
    dirty = [*ROWS, "{broken", ROWS[0], {"instruction": "Say nothing.", "output": " "}]
    raw = {
        "name": "tiny",
        "model": {"base": str(tiny_base)},
        "collect": {"sources": [{"path": str(write_jsonl(home / "colours.jsonl", dirty))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"epochs": 1.0, "learning_rate": 0.01, "precision": "fp32", "scratch_control": True},
        "evaluate": {"max_new_tokens": 8},
        "export": {"parity_rows": 8},
        "store": str(home / "artifacts"),
        "runs": str(home / "runs"),
    }
    path = home / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def first(config: Path) -> tuple[subprocess.CompletedProcess[str], RunRecord]:
    result = attune("run", config)
    assert result.returncode == 0, result.stderr
    return result, record_of(result, config)


def test_every_stage_leaves_a_verified_artifact_and_accounts_for_every_row(first, config):
    _, record = first
    store = ArtifactStore(yaml.safe_load(config.read_text())["store"])
    assert [stage.stage for stage in record.stages] == list(STAGES)
    for stage in record.stages:
        assert store.verify(stage.ref)
        assert stage.rows_in == stage.rows_kept + sum(stage.rejected.values())
        assert not stage.cached and stage.why == "never ran"
        assert stage.seconds > 0 and stage.peak_memory_bytes > 10_000_000
    by_name = {stage.stage: stage for stage in record.stages}
    assert by_name["collect"].rejected == {"invalid_json": 1}
    assert by_name["clean"].rejected == {"duplicate_of": 1, "empty": 1}
    assert by_name["collect"].rows_in == len(ROWS) + 3
    rejected = pq.read_table(store.path(by_name["clean"].ref) / "rejected").to_pylist()
    assert {(row["reason"], row["line"], row["detail"]) for row in rejected} == {
        ("duplicate_of", len(ROWS) + 2, "colours.jsonl:1"),
        ("empty", len(ROWS) + 3, "output"),
    }
    for stage, table, schema in (
        ("format", "train", TOKENIZED),
        ("fine_tune", "history", HISTORY),
        ("evaluate", "predictions", PREDICTION),
    ):
        assert pq.read_schema(part(store.path(by_name[stage].ref) / table)).equals(schema)


def part(table: Path) -> Path:
    """The first shard of a table."""
    return min(table.glob("part-*.parquet"))


def test_the_run_is_data_and_its_links_lead_to_the_model(first, config):
    result, record = first
    assert (record.state, record.error, record.name) == ("completed", "", "tiny")
    assert set(record.evaluation) == {"base", "scratch", "tuned"}
    rows = record.evaluation["tuned"]["test"]["exact_match"].rows
    assert rows == sum(
        scores["loss"].rows for part, scores in record.evaluation["tuned"].items() if part.startswith("task:")
    )
    assert record.evaluation["tuned"]["test"]["loss"].value < record.evaluation["base"]["test"]["loss"].value - 1
    latest = Path(yaml.safe_load(config.read_text())["runs"]) / "latest"
    model = latest / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in model.iterdir()
    }
    card = (model / "MODEL_CARD.md").read_text()
    assert all(stage.key in card for stage in record.stages[:-1])
    assert "| tuned | test |" in card
    assert record.export and Path(record.export.path) == model.resolve().parent
    report = (latest / "report.md").read_text()
    assert "duplicate\\_of 1" in report and "| metric | base | scratch | tuned |" in report
    assert "model " in result.stdout and "report.md" in result.stdout
    assert f"{len(ROWS) + 3} rows were read from 1 source" in (latest / "data.html").read_text()


def test_the_export_answers_in_a_plain_transformers_pipeline(first, config):
    from transformers import pipeline

    latest = Path(yaml.safe_load(config.read_text())["runs"]) / "latest"
    predictions = (
        ArtifactStore(yaml.safe_load(config.read_text())["store"]).path(first[1].stages[5].ref) / "predictions"
    )
    answers = [r for r in pq.read_table(predictions).to_pylist() if r["system"] == "tuned"]
    ask = pipeline("text-generation", model=str(latest / "model"), device="cpu")
    for answer in answers[:4]:
        chat = [{"role": "user", "content": answer["prompt"]}]
        (reply,) = ask(chat, return_full_text=False, max_new_tokens=8)
        assert reply["generated_text"] == answer["prediction"]


def test_an_unchanged_second_run_runs_nothing_and_needs_neither_prefect_nor_torch(first, config):
    script = (
        "import sys, json\nfrom flows.cli import main\n"
        f"sys.argv = ['attune', 'run', {str(config)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    modules = json.loads(done.stdout.rpartition("MODULES ")[2])
    assert not NOT_NEEDED_WHEN_CACHED & set(modules)
    again = record_of(done, config)
    assert all(stage.cached and stage.why == "cached" for stage in again.stages)
    assert [stage.key for stage in again.stages] == [stage.key for stage in first[1].stages]
    assert all(f"{stage.stage}: cached {stage.key}" in done.stdout for stage in again.stages)
    assert again.evaluation == first[1].evaluation


def test_a_new_learning_rate_leaves_the_data_alone_and_the_reason_is_told(first, config):
    result = attune("run", config, "--explain", "fine_tune.learning_rate=0.02", "fine_tune.scratch_control=false")
    assert result.returncode == 0, result.stderr
    record = record_of(result, config)
    assert [stage.stage for stage in record.stages if stage.cached] == ["collect", "clean", "split", "format"]
    why = {stage.stage: stage.why for stage in record.stages}
    assert "learning_rate: 0.01 → 0.02" in why["fine_tune"]
    assert why["evaluate"] == "fine_tune changed"
    assert "Plan" in result.stdout


def test_equal_rows_after_a_new_filter_cut_the_run_short(first, config):
    """Clean runs again and keeps the same rows, so nothing behind it runs."""
    filters = [{"name": "empty"}, {"name": "broken_text"}, {"name": "too_long", "params": {"max_chars": 5000}}]
    result = attune("run", edited(config, "filters.yaml", clean={"filters": filters}))
    assert result.returncode == 0, result.stderr
    assert [stage.stage for stage in record_of(result, config).stages if not stage.cached] == ["clean"]


def test_a_flipped_bit_in_an_input_is_found_and_only_that_artifact_is_made_again(first, config):
    store = ArtifactStore(yaml.safe_load(config.read_text())["store"])
    shard = part(store.path(first[1].stages[2].ref) / "train")
    before = shard.stat()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = attune("run", config, "format.max_seq_length=48")
    assert result.returncode == 0, result.stderr
    assert "was altered" in result.stderr
    record = record_of(result, config)
    assert [stage.stage for stage in record.stages if stage.cached] == ["collect", "clean"]
    assert record.stages[2].digest == first[1].stages[2].digest
    assert record.stages[2].why == "its artifact was damaged and is in quarantine"
    assert len(list((store.root / ".quarantine").iterdir())) == 1


def test_a_loss_that_is_not_finite_fails_the_run_in_plain_words(first, config, tiny_base, home):
    broken = shutil.copytree(tiny_base, home / "broken-base")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    result = attune("run", edited(config, "broken.yaml", model={"base": str(broken)}))
    assert result.returncode == 1
    assert "attune: fine_tune: the loss is nan at step 1" in result.stderr
    assert "Traceback" not in result.stderr
    record = record_of(result, config)
    assert record.state == "failed" and "loss is nan" in record.error
    assert [stage.stage for stage in record.stages] == ["collect", "clean", "split", "format"]


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["collect.sources.0.path=missing.jsonl"], 1, "source missing.jsonl: there is no such file"),
        (["model.base=./missing"], 1, "model.base: there is no folder"),
        (["fine_tune.learning_rat=1"], 2, "fine_tune.learning_rat: unknown key; did you mean 'learning_rate'?"),
        (["split.test=0.5", "split.validation=0.6"], 2, "validation + test must stay below 1"),
        (["collect.max_reject_ratio=0"], 1, "1 of 273 rows are bad, more than collect.max_reject_ratio = 0 allows"),
    ],
)
def test_bad_input_ends_in_a_plain_message(config, overrides, code, message):
    result = attune("run", config, *overrides)
    assert result.returncode == code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert code == 2 or record_of(result, config).state == "failed"


def test_check_shows_the_supervised_tokens_and_predicts_the_steps(first, config):
    result = attune("check", config)
    assert result.returncode == 0, result.stderr
    assert "config.yaml: valid" in result.stdout
    assert "Say the first of red green.<|im_end|>" in result.stdout
    steps = next(stage for stage in first[1].stages if stage.stage == "fine_tune").figures["tuned"]["steps"]
    assert f"at most {steps} optimizer steps" in result.stdout


def test_verify_reads_every_byte(first, config):
    assert attune("verify", config).returncode == 0
    store = ArtifactStore(yaml.safe_load(config.read_text())["store"])
    shard = part(store.path(first[1].stages[1].ref) / "examples")
    before = shard.stat()
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = attune("verify", config)
    assert result.returncode == 1
    assert "1 damaged" in result.stdout


@pytest.mark.slow
def test_killed_while_training_it_goes_on_from_the_checkpoint_and_repeats_nothing_else(config, home):
    overrides = ["fine_tune.epochs=6.0", "fine_tune.scratch_control=false", "fine_tune.early_stopping_patience=0"]
    whole = attune("run", config, *overrides, f"store={home / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    golden = [stage.digest for stage in record_of(whole, config).stages]
    command = [str(Path(sys.executable).with_name("attune")), "run", str(config), *overrides]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    for line in process.stderr:
        if "tuned: step" in line and "step 14 of" not in line:
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    again = attune("run", config, *overrides)
    assert again.returncode == 0, again.stderr
    assert "goes on from checkpoint-" in again.stderr
    record = record_of(again, config)
    assert [stage.stage for stage in record.stages if stage.cached][:4] == ["collect", "clean", "split", "format"]
    assert [stage.digest for stage in record.stages] == golden


def test_a_full_disk_ends_in_a_plain_message(first, config):
    """/dev/full is a file that takes no byte; it stands in for the first shard of clean."""
    script = (
        "import sys\nimport tasks.ledger\n"
        "def full(self, table):\n    open('/dev/full', 'wb', buffering=0).write(b'x')\n"
        "tasks.ledger.ShardWriter.write = full\n"
        f"sys.argv = ['attune', 'run', {str(config)!r}, 'clean.duplicates=keep_all']\n"
        "from flows.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "attune: clean: [Errno 28] No space left on device; nothing was published" in done.stderr
    assert "Traceback" not in done.stderr
