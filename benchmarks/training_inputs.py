"""What every system trains on: a tokenizer, a model with random weights, and the same rows in the forms they want."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import rows

from tasks.config import FormatConfig, ModelConfig
from tasks.format import format
from tasks.layout import PACKS
from tasks.ledger import ShardWriter, read
from tasks.schema import EXAMPLE
from tasks.scratch import build
from tasks.templates import TEMPLATES

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHATML = TEMPLATES["chatml"].replace("{% endgeneration %}{{- '\\n' -}}", "{% endgeneration %}")
"""Without the line break after the answer: who masks up to the end of the text then supervises what attune does."""

SHAPES = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
}
"""What Qwen3-0.6B and Qwen3-1.7B have beside 8 key-value heads of 128 and a vocabulary of 151,936, tied."""

Sizes = dict[str, Any]


def small(hidden: int, layers: int, vocabulary: int) -> Sizes:
    """A small Qwen3: heads of 32, half as many for keys and values, three times its width in between, tied."""
    heads = max(2, hidden // 32)
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 32,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def large(name: str) -> Sizes:
    """A Qwen3 of the sizes that are published."""
    fixed = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
    return SHAPES[name] | fixed


def make_rows(folder: Path, found: Sequence[rows.Row], capacity: int, vocabulary: int) -> list[int]:
    """Write everything but the model to `folder`; returns the length in tokens of each row that fits `capacity`.

    tokenizer/   its chat template is CHATML; token 0 is padding and stands in no row
    split/       the rows as attune's split leaves them, format/ what its format stage makes of them
    packed.parquet   format's packs joined: input_ids, labels, position_ids
    chats.jsonl  the rows that fit, as TRL and LLaMA-Factory read them: prompt and completion, one message each
    """
    folder.mkdir()
    _write_tokenizer(folder / "tokenizer", [rows.text(row) for row in found], vocabulary)
    (folder / "base").mkdir()
    build(_scratch(small(32, 1, vocabulary)), folder / "tokenizer", folder / "base")
    examples = [_example(number, row) for number, row in enumerate(found)]
    for name, chosen in (("train", examples), ("validation", examples[:8]), ("test", examples[:8])):
        writer = ShardWriter(folder / "split" / name, EXAMPLE)
        writer.write(pa.Table.from_pylist(chosen, schema=EXAMPLE))
        writer.close()
    (folder / "format").mkdir()
    format(
        FormatConfig(max_seq_length=capacity, max_reject_ratio=1),
        {"base": folder / "base", "split": folder / "split"},
        folder / "format",
    )
    return _write_for_peers(folder, examples)


def make_model(folder: Path, sizes: Sizes) -> None:
    """Write folder/model: a Qwen3 of `sizes` with random weights in fp32, and the tokenizer."""
    (folder / "model").mkdir()
    build(_scratch(sizes), folder / "tokenizer", folder / "model")


def _scratch(sizes: Sizes) -> ModelConfig:
    return ModelConfig(init="scratch", architecture="qwen3", sizes=sizes)


def _write_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(itertools.chain(texts, ["system user assistant\n"]), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, additional_special_tokens=[START], chat_template=CHATML
    )
    made.save_pretrained(folder)


def _example(number: int, row: rows.Row) -> dict[str, Any]:
    """A row with the columns EXAMPLE."""
    empty = {
        name: [] if pa.types.is_list(kind) else "" for name, kind in zip(EXAMPLE.names, EXAMPLE.types, strict=True)
    }
    named = {name: row[name] for name in ("instruction", "input", "output")}
    return empty | {"id": str(number), "source": "rows", "line": number + 1} | named


def _write_for_peers(folder: Path, examples: Sequence[dict[str, Any]]) -> list[int]:
    train = read(folder / "format" / "train", columns=["id", "input_ids", "labels"]).to_pylist()
    packs = read(folder / "format" / PACKS)["pack"].to_pylist()
    joined = [{"input_ids": [], "labels": [], "position_ids": []} for _ in range(max(packs) + 1)]
    for row, pack in zip(train, packs, strict=True):
        joined[pack]["input_ids"] += row["input_ids"]
        joined[pack]["labels"] += row["labels"]
        joined[pack]["position_ids"] += range(len(row["input_ids"]))
    pq.write_table(pa.Table.from_pylist(joined), folder / "packed.parquet")
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for row in train:
            file.write(json.dumps(_chat(examples[int(row["id"])])) + "\n")
    return [len(row["input_ids"]) for row in train]


def _chat(example: dict[str, Any]) -> dict[str, Any]:
    asked = f"{example['instruction']}\n\n{example['input']}" if example["input"] else example["instruction"]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": example["output"]}],
    }
