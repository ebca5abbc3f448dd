"""Format: render and tokenise the examples, mark what is supervised, and pack the training rows."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.config import FormatConfig
from tasks.errors import TrainingError
from tasks.layout import SPLITS
from tasks.ledger import Ledger, Summary, batches, by_source, rejection
from tasks.packing import pack
from tasks.progress import progress
from tasks.schema import IGNORE_INDEX, PLACE, TOKENIZED
from tasks.templates import Conversation, Rendered, choose, messages, render, special_token_in


def format(config: FormatConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write `train`, `validation`, `test` (columns TOKENIZED) and `tokenizer/`, which carries the chat template.

    Rejects examples that are longer than max_seq_length (`too_many_tokens`), that have nothing to learn
    (`no_supervised_tokens`), whose text holds a special token (`special_token_in_text`) or where training and serving
    would tokenise the prompt differently (`token_across_prompt_end`).  Raises TrainingError when nothing is left.
    """
    tokenizer = load_tokenizer(inputs["base"], config.template)
    tokenizer.save_pretrained(out / "tokenizer")
    figures: dict[str, Any] = {}
    with Ledger(out) as ledger:
        for name in SPLITS:
            ledger.table(name, TOKENIZED)
            rows = _tokenize(inputs["split"] / name, tokenizer, config, ledger)
            figures[name] = _figures(rows)
            if not rows:
                raise TrainingError(f"format: no example of {name} can be used: {dict(ledger.rejected)}")
            if name == "train" and config.packing:
                rows = _packed(rows, config.max_seq_length)
                figures[name]["packed_rows"] = rows[-1]["pack"] + 1
            ledger.keep(name, pa.Table.from_pylist(rows, schema=TOKENIZED))
    return ledger.summary(**figures)


def load_tokenizer(base: Path, template: str) -> Any:
    """The tokenizer of the base model, with the chosen chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.chat_template = choose(template, tokenizer)
    return tokenizer


def refusal(conversation: Conversation, rendered: Rendered, tokenizer: Any, max_seq_length: int) -> tuple[str, str]:
    """Reason and detail for which a rendered conversation cannot be used, or two empty texts."""
    if special := special_token_in(conversation, tokenizer):
        return "special_token_in_text", f"{special} would be read as a mark of the template"
    if not any(rendered.loss_mask):
        return "no_supervised_tokens", "the answer leaves no token to learn from"
    if len(rendered.input_ids) > max_seq_length:
        return "too_many_tokens", f"{len(rendered.input_ids)} tokens, format.max_seq_length is {max_seq_length}"
    if not rendered.clean_cut:
        return "token_across_prompt_end", "one token reaches from the prompt into the answer"
    return "", ""


def _tokenize(examples: Path, tokenizer: Any, config: FormatConfig, ledger: Ledger) -> list[dict[str, Any]]:
    rows = []
    for table in progress(batches(examples, rows=1000), f"format {examples.name}", unit="batches"):
        ledger.enter(by_source(table))
        rejected = []
        batch = table.to_pylist()
        conversations = [messages(row) for row in batch]
        for example, conversation, rendered in zip(batch, conversations, render(conversations, tokenizer), strict=True):
            reason, detail = refusal(conversation, rendered, tokenizer, config.max_seq_length)
            if reason:
                rejected.append(rejection(example, reason, detail))
            else:
                rows.append(_row(example, rendered))
        ledger.reject(rejected)
    return rows


def _row(example: dict[str, Any], rendered: Rendered) -> dict[str, Any]:
    labels = [
        token if supervised else IGNORE_INDEX
        for token, supervised in zip(rendered.input_ids, rendered.loss_mask, strict=True)
    ]
    row = {name: example[name] for name in ("id", *PLACE, "task")}
    return row | {
        "input_ids": rendered.input_ids,
        "labels": labels,
        "prompt_tokens": rendered.prompt_tokens,
        "pack": -1,
    }


def _packed(rows: list[dict[str, Any]], max_seq_length: int) -> list[dict[str, Any]]:
    """The rows with their pack, in its order."""
    packs = pack([len(row["input_ids"]) for row in rows], max_seq_length)
    packed = [row | {"pack": number} for row, number in zip(rows, packs, strict=True)]
    return sorted(packed, key=lambda row: row["pack"])


def _figures(rows: list[dict[str, Any]]) -> dict[str, int]:
    lengths = [len(row["input_ids"]) for row in rows]
    supervised = sum(len(row["input_ids"]) - row["prompt_tokens"] for row in rows)
    return {
        "rows": len(rows),
        "tokens": sum(lengths),
        "supervised_tokens": supervised,
        "longest_tokens": max(lengths, default=0),
    }
