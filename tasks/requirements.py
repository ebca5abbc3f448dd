"""What settings of fine_tune need of the machine; told before any data is touched."""

from importlib.util import find_spec

from tasks.config import FineTuneConfig
from tasks.errors import ConfigError


def check(config: FineTuneConfig) -> None:
    """Raise ConfigError for settings that cannot work here."""
    if config.attn_implementation == "flex_attention":  # it has no backward pass on a CPU
        _needs_cuda("fine_tune.attn_implementation: flex_attention")
    for field, value in (("method", "qlora"), ("optimizer", "adamw_8bit")):
        if getattr(config, field) == value:
            _needs_cuda(f"fine_tune.{field}: {value}")
            _needs_bitsandbytes(f"fine_tune.{field}: {value}")
    for tracker in config.report_to:
        if find_spec(tracker) is None:
            raise ConfigError(f"fine_tune.report_to: {tracker} is not installed")


def _needs_cuda(setting: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"{setting} needs a GPU with CUDA, and there is none here")


def _needs_bitsandbytes(setting: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{setting} needs bitsandbytes, which is not installed: pip install 'attune[cuda]'")
