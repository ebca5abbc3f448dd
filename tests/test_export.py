"""The gate: an export that renders or answers differently is not published."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tasks import templates
from tasks.errors import ExportError
from tasks.export import check_answers, check_rendering
from tasks.exporters import huggingface
from tasks.families import decoder_only
from tasks.schema import EXAMPLE


@pytest.fixture
def tokenizer(tiny_base: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = templates.choose("chatml", tokenizer)
    return tokenizer


@pytest.fixture
def exported(tmp_path: Path, tiny_base: Path, tokenizer) -> Path:
    tuned = tmp_path / "tuned"
    decoder_only.load(tiny_base).save_pretrained(tuned)
    folder = tmp_path / "huggingface"
    huggingface.write(tuned, tokenizer, decoder_only.generation_config(tokenizer, 8), folder)
    return folder


@pytest.fixture
def rows(tokenizer) -> list[dict[str, object]]:
    made = []
    for line, colour in enumerate(("red", "green", "blue"), start=1):
        row = dict.fromkeys(EXAMPLE.names, "") | {
            "source": "s",
            "file": "s",
            "line": line,
            "history": [],
            "tool_turns": [],
        }
        row |= {"instruction": f"Say {colour}.", "output": colour}
        (rendered,) = templates.render([templates.messages(row)], tokenizer)
        made.append(row | {"input_ids": rendered.input_ids, "prompt_tokens": rendered.prompt_tokens})
    return made


def test_a_faithful_export_passes(tmp_path, exported, rows):
    check_rendering(exported, rows)
    check_answers(tmp_path / "tuned", exported, rows)
    stops = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert set(stops) == {0, 2}  # end of text and <|im_end|>


def test_a_changed_weight_closes_the_gate(tmp_path, exported, rows):
    model = decoder_only.load(exported)
    with torch.no_grad():
        model.model.norm.weight.neg_()
    model.save_pretrained(exported)
    with pytest.raises(ExportError, match="row s:1 is answered"):
        check_answers(tmp_path / "tuned", exported, rows)


def test_another_chat_template_closes_the_gate(exported, rows):
    (exported / "chat_template.jinja").write_text(templates.TEMPLATES["plain"])
    with pytest.raises(ExportError, match="row s:1 with other tokens"):
        check_rendering(exported, rows)


def test_another_tokenizer_closes_the_gate(exported, rows):
    path = exported / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["merges"] = raw["model"]["merges"][: len(raw["model"]["merges"]) // 4]
    path.write_text(json.dumps(raw))
    with pytest.raises(ExportError, match="other tokens"):
        check_rendering(exported, rows)


def test_weights_are_copied_byte_for_byte(tmp_path, exported):
    assert (exported / "model.safetensors").read_bytes() == (tmp_path / "tuned" / "model.safetensors").read_bytes()
    assert not list(exported.glob("*.bin"))
