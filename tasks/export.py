"""Export: write the tuned model for others to use, after it has answered as it did in the evaluation."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from tasks.config import ExportConfig
from tasks.errors import ExportError
from tasks.exporters import huggingface
from tasks.families import find, load_family
from tasks.held_out import held_out_rows
from tasks.ledger import Summary, place
from tasks.model_card import model_card

BATCH_SIZE = 32
MAX_NEW_TOKENS = 256
PARITY_TOKENS = 64


def export(config: ExportConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write `huggingface/`: safetensors, tokenizer, MODEL_CARD.md, and for a model that generates its chat template
    and generation config.

    Raises ExportError when the exported folder renders or answers a test row differently than what was evaluated.
    """
    tokenizer = AutoTokenizer.from_pretrained(inputs["format"] / "tokenizer", trust_remote_code=False)
    tuned, folder = inputs["fine_tune"] / "tuned", out / "huggingface"
    generation = load_family(find(tuned)).generation_config(tokenizer, MAX_NEW_TOKENS)
    huggingface.write(tuned, tokenizer, generation, folder)
    rows = held_out_rows(inputs, config.parity_rows)
    check_rendering(folder, rows)
    check_answers(tuned, folder, rows)
    (folder / "MODEL_CARD.md").write_text(model_card(inputs, parity_rows=len(rows)), encoding="utf-8")
    figures = {"formats": list(config.formats), "parity_rows": len(rows)}
    return Summary(rows_in=len(rows), rows_kept=len(rows), figures=figures)


def check_rendering(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The exported tokenizer must turn each test row into the tokens that were trained and evaluated."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    family = load_family(find(folder))
    for row in rows:
        if row["truncated"]:  # it was asked with less than its texts
            continue
        asked = family.prompt_ids(row, tokenizer)
        if asked != row["input_ids"][: row["prompt_tokens"]]:
            raise ExportError(
                f"export: the exported tokenizer asks row {place(row)} with other tokens than the "
                f"evaluation did ({asked} against {row['input_ids'][: row['prompt_tokens']]}); nothing was published"
            )


def check_answers(tuned: Path, folder: Path, rows: list[dict[str, Any]]) -> None:
    """The exported model must answer each test row as the evaluated one: with the same tokens, or the same class."""
    family = load_family(find(folder))
    generates = (folder / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(folder, max_new_tokens=PARITY_TOKENS) if generates else None
    answers = [
        family.answers(family.load(each), rows, generation, BATCH_SIZE, f"export {each.name}")
        for each in (tuned, folder)
    ]
    for row, evaluated, exported in zip(rows, *answers, strict=True):
        if evaluated != exported:
            raise ExportError(
                f"export: row {place(row)} is answered {exported} by the export and "
                f"{evaluated} by the evaluated model; nothing was published"
            )
