"""The gate: an export that renders or answers differently is not published."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SIZES
from safetensors.torch import save_model
from transformers import AutoTokenizer

from tasks import templates
from tasks.config import FormatConfig
from tasks.errors import ExportError
from tasks.export import check_answers, check_rendering
from tasks.exporters import huggingface
from tasks.families import find, load_family
from tasks.schema import EXAMPLE

LABELS = ["blue", "green", "red"]


class Tuned:
    """A model of an architecture in `tuned`, its export in `huggingface`, and rows as the evaluation asked them."""

    def __init__(self, base: Path, home: Path) -> None:
        family = load_family(find(base))
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = family.chat_template("auto", tokenizer)
        self.tuned, self.exported = home / "tuned", home / "huggingface"
        family.load(base, labels=LABELS).save_pretrained(self.tuned)
        huggingface.write(self.tuned, tokenizer, family.generation_config(tokenizer, 8), self.exported)
        examples = [example(line, colour) for line, colour in enumerate(("red", "green", "blue"), start=1)]
        encoded = family.encode(examples, tokenizer, FormatConfig(), LABELS)
        self.rows = [row | each._asdict() for row, each in zip(examples, encoded, strict=True)]


def example(line: int, colour: str) -> dict[str, object]:
    row = dict.fromkeys(EXAMPLE.names, "") | {"source": "s", "file": "s", "line": line, "history": [], "tool_turns": []}
    return row | {"instruction": f"Say {colour}.", "output": colour, "label": colour}


@pytest.fixture(params=SIZES)
def each(request: pytest.FixtureRequest, scratch_base, tmp_path) -> Tuned:
    return Tuned(scratch_base(request.param), tmp_path)


@pytest.fixture
def llama(scratch_base, tmp_path) -> Tuned:
    return Tuned(scratch_base("llama"), tmp_path)


def test_a_faithful_export_passes(each):
    check_rendering(each.exported, each.rows)
    check_answers(each.tuned, each.exported, each.rows)


def test_a_changed_weight_closes_the_gate(each):
    family = load_family(find(each.exported))
    model = family.load(each.exported)
    classifier = getattr(model, "classifier", None)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("classifier") or (classifier is None and ("norm" in name.lower() or "ln_" in name)):
                weight.neg_()
    save_model(model, each.exported / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"row s:\d is answered"):
        check_answers(each.tuned, each.exported, each.rows)


def test_another_tokenizer_closes_the_gate(each):
    path = each.exported / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["merges"] = raw["model"]["merges"][: len(raw["model"]["merges"]) // 4]
    path.write_text(json.dumps(raw))
    with pytest.raises(ExportError, match="other tokens"):
        check_rendering(each.exported, each.rows)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_another_chat_template_closes_the_gate(scratch_base, tmp_path, architecture):
    made = Tuned(scratch_base(architecture), tmp_path)
    (made.exported / "chat_template.jinja").write_text(templates.TEMPLATES["plain"])
    with pytest.raises(ExportError, match="row s:1 with other tokens"):
        check_rendering(made.exported, made.rows)


def test_a_row_that_was_cut_is_not_asked_from_its_texts_but_is_answered(llama):
    cut = [row | {"truncated": True, "input_ids": row["input_ids"][1:]} for row in llama.rows]
    check_rendering(llama.exported, cut)
    check_answers(llama.tuned, llama.exported, cut)
    with pytest.raises(ExportError, match="row s:1 with other tokens"):
        check_rendering(llama.exported, [row | {"truncated": False} for row in cut])


def test_a_model_is_published_with_its_stop_tokens_and_a_classifier_with_none(scratch_base, tmp_path):
    stops = {}
    for architecture in ("llama", "bart", "bert"):
        path = Tuned(scratch_base(architecture), tmp_path / architecture).exported / "generation_config.json"
        stops[architecture] = set(json.loads(path.read_text())["eos_token_id"]) if path.exists() else None
    assert stops == {"llama": {0, 2}, "bart": {0}, "bert": None}  # end of text, and <|im_end|> where it is written


def test_weights_are_copied_byte_for_byte(llama):
    assert (llama.exported / "model.safetensors").read_bytes() == (llama.tuned / "model.safetensors").read_bytes()
    assert not list(llama.exported.glob("*.bin"))
