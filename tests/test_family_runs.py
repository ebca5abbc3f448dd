"""Every family from collect to export, and every shipped config; stages run as in the flow, but without its server."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import DECODERS, ENCODER_DECODERS, ROWS, SIZES, write_jsonl
from sklearn.metrics import precision_recall_fscore_support
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from flows.runtime import run_stage
from tasks.config import PipelineConfig
from tasks.config_file import load
from tasks.errors import TrainingError
from tasks.ledger import read
from tasks.plan import look_up
from tasks.run_record import StageRecord
from tasks.stages import STAGES
from tasks.store import ArtifactStore

CONFIGS = Path(__file__).parent.parent / "configs"
ARCHITECTURES = list(SIZES)


class Run:
    """The artifacts of all stages of a config, found in its store or made."""

    def __init__(self, config: PipelineConfig) -> None:
        self.store = ArtifactStore(config.store)
        self.records: dict[str, StageRecord] = {}
        for stage in STAGES.values():
            refs = {name: self.records[name].ref for name in self.records}
            step = look_up(stage, config, refs, self.store)
            inputs = {name: refs[name] for name in stage.inputs}
            self.records[stage.name] = run_stage(stage, config, step, inputs)

    def folder(self, stage: str) -> Path:
        return self.store.path(self.records[stage].ref)

    @property
    def exported(self) -> Path:
        return self.folder("export") / "huggingface"

    @property
    def evaluation(self) -> dict[str, Any]:
        return self.records["evaluate"].figures["evaluation"]

    def answers(self, system: str = "tuned") -> list[dict[str, Any]]:
        return [row for row in read(self.folder("evaluate") / "predictions").to_pylist() if row["system"] == system]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("families")
    unlabelled = {"instruction": "What is the weather like in the mountains?", "output": "red"}
    rows = [*({"label": row["task"]} | row for row in ROWS), unlabelled]
    return {
        "model": {"base": str(tiny_base), "init": "scratch"},
        "collect": {"sources": [{"path": str(write_jsonl(home / "colours.jsonl", rows))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"epochs": 2.0, "learning_rate": 0.003, "precision": "fp32", "evals_per_epoch": 1},
        "evaluate": {"max_new_tokens": 6},
        "export": {"parity_rows": 8},
        "engine": {"processes": 1},
        "store": str(home / "artifacts"),
        "runs": str(home / "runs"),
    }


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any]):
    """Runs by architecture; each is made once, all share their data stages."""
    made: dict[str, Run] = {}

    def run(architecture: str) -> Run:
        if architecture not in made:
            model = settings["model"] | {"architecture": architecture, "sizes": SIZES[architecture]}
            made[architecture] = Run(PipelineConfig.model_validate(settings | {"model": model}))
        return made[architecture]

    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_is_accounted_for_and_training_teaches(runs, architecture):
    run = runs(architecture)
    for record in run.records.values():
        assert record.rows_in == record.rows_kept + sum(record.rejected.values())
    assert run.records["format"].rejected == ({"no_label": 1} if architecture == "bert" else {})
    assert run.evaluation["tuned"]["test"]["loss"]["value"] < run.evaluation["base"]["test"]["loss"]["value"]
    assert run.records["export"].figures["parity_rows"] == 8


@pytest.mark.parametrize("architecture", DECODERS)
def test_an_exported_decoder_answers_in_plain_transformers(runs, architecture):
    run = runs(architecture)
    ask = pipeline("text-generation", model=str(run.exported), device="cpu")
    assert type(ask.model) in AutoModelForCausalLM._model_mapping.values()
    for answer in run.answers()[:4]:
        (reply,) = ask([{"role": "user", "content": answer["prompt"]}], return_full_text=False, max_new_tokens=6)
        assert reply["generated_text"] == answer["prediction"]


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_an_exported_encoder_decoder_answers_in_plain_transformers(runs, architecture):
    """Asked as the model card says."""
    run = runs(architecture)
    tokenizer = AutoTokenizer.from_pretrained(run.exported)
    model = AutoModelForSeq2SeqLM.from_pretrained(run.exported)
    for answer in run.answers()[:4]:
        chat = [{"role": "user", "content": answer["prompt"]}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        found = model.generate(asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=6)
        assert tokenizer.decode(found[0], skip_special_tokens=True) == answer["prediction"]


def test_an_exported_classifier_answers_in_plain_transformers(runs):
    run = runs("bert")
    classify = pipeline("text-classification", model=str(run.exported), device="cpu")
    assert type(classify.model) in AutoModelForSequenceClassification._model_mapping.values()
    answers = run.answers()
    assert [classify(answer["prompt"])[0]["label"] for answer in answers] == [row["prediction"] for row in answers]
    assert {row["reference"] for row in answers} == {"both", "first", "last"}


def test_a_classifier_is_scored_by_answer_and_by_group(runs):
    run = runs("bert")
    for system in ("base", "tuned"):
        answers = run.answers(system)
        found = {name: score["value"] for name, score in run.evaluation[system]["test"].items()}
        references, predictions = ([row[name] for row in answers] for name in ("reference", "prediction"))
        expected = precision_recall_fscore_support(references, predictions, average="macro", zero_division=0)[:3]
        assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(list(expected))
        right = sum(a == b for a, b in zip(references, predictions, strict=True))
        assert found["accuracy"] == pytest.approx(right / len(answers))
        assert all(set(dict(row["scores"])) == {"accuracy"} for row in answers)
    assert set(run.evaluation["tuned"]["source:colours.jsonl"]) == {"loss", "accuracy", "precision", "recall", "f1"}


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("llama", ["decoder-only language model (family `decoder_only`)", 'pipeline("text-generation"']),
        ("t5", ["encoder-decoder language model (family `encoder_decoder`)", "AutoModelForSeq2SeqLM.from_pretrained"]),
        (
            "bert",
            [
                "encoder with a classification head (family `encoder_classifier`)",
                'pipeline("text-classification"',
                "It tells 3 labels apart: `both`, `first`, `last`.",
                "random weights there, so it shows chance",
            ],
        ),
    ],
)
def test_the_model_card_says_what_it_is_and_how_to_run_it(runs, architecture, says):
    card = (runs(architecture).exported / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert [said for said in says if said not in card] == []
    assert ("labels apart" in card) == (architecture == "bert")


def test_an_export_holds_what_its_family_needs(runs):
    generates = {name: (runs(name).exported / "generation_config.json").exists() for name in ("gpt2", "t5", "bert")}
    assert generates == {"gpt2": True, "t5": True, "bert": False}
    assert json.loads((runs("t5").exported / "generation_config.json").read_text())["decoder_start_token_id"] == 0
    assert not (runs("bert").exported / "chat_template.jinja").exists()
    labels = json.loads((runs("bert").exported / "config.json").read_text())["id2label"]
    assert labels == {"0": "both", "1": "first", "2": "last"}
    assert json.loads((runs("bert").folder("format") / "labels.json").read_text()) == ["both", "first", "last"]


def test_only_decoders_pack(runs):
    assert "packed_rows" in runs("llama").records["format"].figures["train"]
    assert (runs("llama").folder("format") / "packs").exists()
    for architecture in ("t5", "bert"):
        assert "packed_rows" not in runs(architecture).records["format"].figures["train"]
        assert not (runs(architecture).folder("format") / "packs").exists()


def test_one_class_ends_in_a_plain_message(settings, tmp_path):
    rows = [row | {"label": "same"} for row in ROWS]
    source = {"path": str(write_jsonl(tmp_path / "same.jsonl", rows))}
    model = settings["model"] | {"architecture": "bert", "sizes": SIZES["bert"]}
    config = settings | {"model": model, "collect": {"sources": [source]}, "store": str(tmp_path / "store")}
    with pytest.raises(TrainingError, match="every label of train is 'same'; a classifier needs two or more"):
        Run(PipelineConfig.model_validate(config))


def test_no_class_ends_in_a_plain_message(settings, tmp_path):
    source = {"path": str(write_jsonl(tmp_path / "none.jsonl", ROWS))}
    model = settings["model"] | {"architecture": "bert", "sizes": SIZES["bert"]}
    config = settings | {"model": model, "collect": {"sources": [source]}, "store": str(tmp_path / "store")}
    with pytest.raises(TrainingError, match=r"no example of train can be used: .*no_label"):
        Run(PipelineConfig.model_validate(config))


def test_the_metrics_can_be_chosen(runs, settings):
    model = settings["model"] | {"architecture": "bert", "sizes": SIZES["bert"]}
    chosen = settings | {"model": model, "evaluate": {"metrics": ["f1", "exact_match"]}}
    run = Run(PipelineConfig.model_validate(chosen))
    assert list(run.evaluation["tuned"]["test"]) == ["loss", "f1", "exact_match"]
    assert run.evaluation["tuned"]["test"]["f1"] == runs("bert").evaluation["tuned"]["test"]["f1"]


# The shipped configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path):
    assert load(path).name.replace("_", "-") == path.stem.replace("_", "-")


SMALL = [
    "fine_tune.max_steps=2",
    "fine_tune.evals_per_epoch=1",
    "fine_tune.scratch_control=false",
    "fine_tune.per_device_batch_size=2",
    "fine_tune.precision=fp32",
    "evaluate.max_new_tokens=4",
    "evaluate.max_rows=6",
    "export.parity_rows=2",
    "engine.processes=1",
]


@pytest.mark.parametrize("name", ["t5", "bart", "qwen3", "bert", "intent-classifier"])
def test_a_shipped_config_runs_from_end_to_end(tmp_path, monkeypatch, scratch_base, name):
    """For two steps; the classifier on a tiny base where its own would have to be installed."""
    monkeypatch.chdir(CONFIGS.parent)
    rest = [f"store={tmp_path / 'artifacts'}", f"runs={tmp_path / 'runs'}"]
    if name == "intent-classifier":
        rest.append(f"model.base={scratch_base('bert')}")
    elif name != "bert":
        rest += ["collect.sources.0.limit=120", *(f"collect.sources.{place}.limit=8" for place in range(1, 5))]
    run = Run(load(CONFIGS / f"{name}.yaml", [*SMALL, *rest]))
    assert run.records["evaluate"].rows_kept == 6
    assert AutoTokenizer.from_pretrained(run.exported)
    if name in {"bert", "intent-classifier"}:
        rejected = Counter(run.records["clean"].rejected)
        assert rejected["unknown_label"] == 5 and rejected["broken_text"] == 4 and rejected["empty"] == 4
        assert run.records["collect"].rejected == {"invalid_json": 1, "missing_field": 1, "not_an_object": 1}
        assert rejected["conflicts_with"] == 8 and rejected["duplicate_of"] >= 8


def test_the_intents_are_made_again_byte_by_byte(tmp_path):
    folder = CONFIGS.parent / "data" / "intents"
    subprocess.run([sys.executable, str(folder / "make_data.py"), str(tmp_path)], check=True)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_intents_of_the_test_are_phrased_as_none_of_train():
    folder = CONFIGS.parent / "data" / "intents"
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    train = (folder / "train.jsonl").read_text(encoding="utf-8")
    assert set(Counter(row["label"] for row in test).values()) == {17} and len({row["label"] for row in test}) == 12
    assert not [row for row in test if json.dumps(row["text"], ensure_ascii=False) in train]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pretrained_weights_make_the_intent_classifier(tmp_path, monkeypatch):
    """Real weights from a Python package: one epoch is enough to tell twelve intents in phrasings of its own."""
    monkeypatch.chdir(CONFIGS.parent)
    rest = [f"store={tmp_path / 'artifacts'}", f"runs={tmp_path / 'runs'}", "fine_tune.epochs=1"]
    run = Run(load(CONFIGS / "intent-classifier.yaml", [*rest, "fine_tune.scratch_control=false"]))
    scores = {system: parts["test"] for system, parts in run.records["evaluate"].figures["evaluation"].items()}
    assert scores["base"]["accuracy"]["value"] < 0.3, "its head has random weights"
    assert scores["tuned"]["accuracy"]["value"] > 0.7 and scores["tuned"]["f1"]["value"] > 0.7
