"""Small things that the tests are made of: tiny base models of every family and a tiny data set."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_prefect = tempfile.TemporaryDirectory(prefix="attune-tests-prefect-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = _prefect.name  # not among the user's own runs
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

COLOURS = ["red", "green", "blue", "white", "black", "brown", "pink", "grey", "gold", "teal"]
ROWS = [
    {"task": task, "instruction": f"{verb} {colour} {other}.", "output": answer(colour, other)}
    for task, verb, answer in (
        ("first", "Say the first of", lambda a, b: a),
        ("last", "Say the last of", lambda a, b: b),
        ("both", "Say both of", lambda a, b: f"{a} {b}"),
    )
    for colour in COLOURS
    for other in COLOURS
    if colour != other
]

SIZES: dict[str, dict[str, int | float | bool]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "qwen3": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 256,
    },
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
"""Architecture -> sizes of a tiny model."""
DECODERS = ["llama", "gpt2", "qwen3"]
ENCODER_DECODERS = ["t5", "bart"]


def write_jsonl(path: Path, rows: list[object]) -> Path:
    """Rows as JSON Lines; a row that is text already stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Llama of 30,000 parameters with a byte-level tokenizer, as a base model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["instruction"] + row["output"] for row in ROWS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scratch_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny base of an architecture of SIZES, randomly initialised, with the tokenizer of `tiny_base`."""
    from tasks import base_model
    from tasks.config import ModelConfig

    store = tmp_path_factory.mktemp("scratch")

    def build(architecture: str) -> Path:
        model = ModelConfig(base=str(tiny_base), init="scratch", architecture=architecture, sizes=SIZES[architecture])
        return base_model.resolve(model, store)

    return build
