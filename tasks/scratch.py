"""A model without pre-training: an architecture of given sizes, with random weights and another model's tokenizer."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from tasks.config import ModelConfig
from tasks.errors import ModelError
from tasks.families import FAMILIES, find, load_family


def build(model: ModelConfig, tokenizer_folder: Path, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer to `out`.  Raises ModelError for sizes that do not fit."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        if model.architecture:
            known = {"vocab_size": len(tokenizer), **tokens, **model.sizes}
            config = AutoConfig.for_model(model.architecture, **known)
        else:
            config = AutoConfig.from_pretrained(tokenizer_folder, trust_remote_code=False, **model.sizes)
        _check_names(model, config)
        config.architectures = None
        config.save_pretrained(out)
        family = model.family if model.family != "auto" else _family(config, out)
        made = load_family(family).from_scratch(out, model.seed)
    except (ValueError, TypeError, ZeroDivisionError, KeyError, AssertionError, RuntimeError) as error:
        named = model.architecture or "such"
        raise ModelError(f"model.sizes: no {named} model can be built of these: {error}") from None
    made.to(torch.float32).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _check_names(model: ModelConfig, config: PreTrainedConfig) -> None:
    """A misspelt size would otherwise be kept as a word that means nothing."""
    known = type(config)().to_dict().keys() | set(config.attribute_map)
    if unknown := sorted(set(model.sizes) - known):
        raise ModelError(
            f"model.sizes: {config.model_type} knows no {unknown[0]!r}; it knows, among others, "
            f"{', '.join(sorted(name for name in known if 'size' in name or 'num' in name))}"
        )


def _family(config: PreTrainedConfig, folder: Path) -> str:
    """What the type of the model says; a type that is no encoder and no encoder-decoder is a decoder."""
    try:
        return find(folder)
    except ModelError:
        return FAMILIES[0]
