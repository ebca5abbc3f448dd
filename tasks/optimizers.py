"""Optimizers and what they need."""

from typing import Any

import torch

from tasks.config import FineTuneConfig


def optimizer(config: FineTuneConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class and its arguments; weight decay is given by the Trainer for each group of parameters."""
    rate = {"lr": config.learning_rate}
    if config.optimizer == "sgd":
        return torch.optim.SGD, rate | {"momentum": config.momentum}
    if config.optimizer == "adafactor":
        from transformers import Adafactor

        return Adafactor, rate | {"scale_parameter": False, "relative_step": False}
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit, rate
    return (torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam), rate | {"fused": True}
