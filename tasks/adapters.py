"""Adapters: LoRA (Hu et al. 2021, arXiv:2106.09685), DoRA (arXiv:2402.09353), QLoRA (arXiv:2305.14314), by PEFT."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tasks.config import FineTuneConfig
from tasks.errors import ConfigError
from tasks.families import load_family

_TASKS = {"decoder_only": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM", "encoder_classifier": "SEQ_CLS"}


def load_base(
    folder: Path, family: str, labels: Sequence[str], config: FineTuneConfig, precision: str
) -> PreTrainedModel:
    """The base that stays as it is: in the precision of the training, or with qlora in 4 bits."""
    if config.method == "qlora":
        return _in_4_bits(folder, family)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return load_family(family).load(folder, dtype, labels)


def add(model: PreTrainedModel, family: str, config: FineTuneConfig) -> PreTrainedModel:
    """The model with an adapter, of which alone the weights are trained (and a classifier's head).

    Raises ConfigError when the model has no layer of a name in `target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    wanted = LoraConfig(
        task_type=_TASKS[family],
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.target_modules) or "all-linear",
        use_dora=config.method == "dora",
    )
    try:
        return get_peft_model(model, wanted)
    except ValueError as error:
        raise ConfigError(f"fine_tune.lora.target_modules: {str(error).splitlines()[0]}") from None


def merged(base: Path, family: str, labels: Sequence[str], adapter: Path) -> PreTrainedModel:
    """The base with the adapter's updates in its weights, in fp32."""
    from peft import PeftModel

    model = load_family(family).load(base, torch.float32, labels)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _in_4_bits(folder: Path, family: str) -> PreTrainedModel:
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    if family == "encoder_classifier":
        raise ConfigError("fine_tune.method: qlora is for decoders and encoder-decoders; use lora")
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = load_family(family).AUTO.from_pretrained(
        folder, quantization_config=bits, device_map={"": 0}, trust_remote_code=False, use_safetensors=True
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
