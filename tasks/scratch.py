"""A model without pre-training: an architecture of given sizes, with random weights and another model's tokenizer."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from tasks.config import ModelConfig
from tasks.errors import ModelError
from tasks.families import FAMILIES, find, load_family

_UNFIT = (StrictDataclassError, ValueError, TypeError, ZeroDivisionError, LookupError, AssertionError, RuntimeError)
"""What transformers and torch raise at sizes that do not fit."""


def build(model: ModelConfig, tokenizer_folder: Path, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer to `out`.

    Raises ModelError for sizes that do not fit: with which it cannot be built, or cannot read two tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    try:
        config = _config(model, tokenizer, tokenizer_folder)
        config.save_pretrained(out)
        family = load_family(model.family if model.family != "auto" else _family(out))
        made = family.from_scratch(out, model.seed)
        family.example_losses(made, [{"input_ids": [0, 0], "labels": [0, 0]}])
    except _UNFIT as error:
        named, why = model.architecture or "such", " ".join(str(error).split())[:300]
        raise ModelError(f"model.sizes: no {named} model can be built of these: {why}") from None
    made.to(torch.float32).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _config(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedConfig:
    """The config of an architecture with the tokenizer's marks, or that of the folder; with the given sizes."""
    if model.architecture:
        marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(model.architecture, **{"vocab_size": len(tokenizer), **marks, **model.sizes})
        if (
            config.is_encoder_decoder
        ):  # begins its answers with the padding, as T5 does, and ends them where it wants to
            padding, end = marks["pad_token_id"], marks["eos_token_id"]
            config.decoder_start_token_id = end if padding is None else padding
            config.forced_eos_token_id = None
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **model.sizes)
    _check_names(model, config)
    if config.vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size is {config.vocab_size}, and the tokenizer has {len(tokenizer)} tokens")
    config.architectures = None
    return config


def _check_names(model: ModelConfig, config: PreTrainedConfig) -> None:
    """A misspelt size would otherwise be kept as a word that means nothing."""
    known = type(config)().to_dict().keys() | set(config.attribute_map)
    if unknown := sorted(set(model.sizes) - known):
        raise ModelError(
            f"model.sizes: {config.model_type} knows no {unknown[0]!r}; it knows, among others, "
            f"{', '.join(sorted(name for name in known if 'size' in name or 'num' in name))}"
        )


def _family(folder: Path) -> str:
    """What the type of the model says; a type that is no encoder and no encoder-decoder is a decoder."""
    try:
        return find(folder)
    except ModelError:
        return FAMILIES[0]
