"""The Hugging Face folder: safetensors, tokenizer with its chat template, generation config."""

import shutil
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase


def write(tuned: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None, folder: Path) -> None:
    """Write a folder that `from_pretrained` opens; weights are copied byte for byte."""
    shutil.copytree(tuned, folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        config = AutoConfig.from_pretrained(tuned, trust_remote_code=False)
        generation.decoder_start_token_id = getattr(config, "decoder_start_token_id", None)  # of encoder-decoders
        generation.save_pretrained(folder)
