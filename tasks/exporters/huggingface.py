"""The Hugging Face folder: safetensors, tokenizer with its chat template, generation config."""

import shutil
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase


def write(tuned: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` opens; weights are copied byte for byte."""
    shutil.copytree(tuned, folder)
    tokenizer.save_pretrained(folder)
    generation.save_pretrained(folder)
