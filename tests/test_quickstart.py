"""The quickstart proves its point: tuning draws out what pre-training put in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.run_record import RunRecord

ROOT = Path(__file__).parent.parent
FACTS = ("source:test_facts.jsonl", "source:test_facts_new_phrasings.jsonl")
SKILLS = ("source:test_skills.jsonl", "source:test_skills_new_phrasings.jsonl")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    home = tmp_path_factory.mktemp("quickstart")
    command = [str(Path(sys.executable).with_name("attune")), "run", "configs/quickstart.yaml"]
    overrides = [f"store={home / 'artifacts'}", f"runs={home / 'runs'}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command + overrides, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr
    return RunRecord.model_validate_json((home / "runs" / "latest" / "run.json").read_text())


def exact_match(record: RunRecord, system: str, parts: tuple[str, ...]) -> float:
    scores = [record.evaluation[system][part]["exact_match"] for part in parts]
    return sum(score.value * score.rows for score in scores) / sum(score.rows for score in scores)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_base_cannot_follow_instructions_and_tuned_answers_what_tuning_never_showed(record):
    assert exact_match(record, "base", FACTS + SKILLS) <= 0.05
    assert exact_match(record, "tuned", FACTS) >= 0.7
    assert exact_match(record, "tuned", SKILLS) >= 0.8
    assert exact_match(record, "scratch", FACTS) <= 0.2


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_the_dirt_of_the_raw_data_is_found_and_told(record):
    rejected = {stage.stage: stage.rejected for stage in record.stages}
    assert set(rejected["collect"]) == {"invalid_json", "not_an_object"}
    assert set(rejected["clean"]) == {"broken_text", "duplicate_of", "empty", "near_duplicate_of", "too_long"}
    assert set(rejected["split"]) == {"joins_two_splits", "near_duplicate_in_test"} and not rejected["format"]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_nothing_of_the_test_files_stands_in_train(record):
    leak = next(stage.figures["leak"] for stage in record.stages if stage.stage == "split")
    assert leak["test"]["rows"] == 844 and leak["test"]["ratio"] == leak["validation"]["ratio"] == 0
