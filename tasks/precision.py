"""Which arithmetic is faster here: a short measurement, not a flag that people forget."""

import time
from typing import Literal

import torch
from torch.nn import functional

from tasks.devices import device

GAIN = 1.2
"""bf16 must be so much faster: it rounds to 8 bits, which should buy something."""

ROUNDS = 8


def choose(wanted: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 where a matrix product, forward and backward, is GAIN times faster in it (some 0.2 s)."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rounds = [(_seconds(False), _seconds(True)) for _ in range(ROUNDS)]  # in turns, as the machine may be shared
    fp32, bf16 = (min(times) for times in zip(*rounds, strict=True))
    return "bf16" if fp32 > GAIN * bf16 else "fp32"


def _seconds(bf16: bool) -> float:
    """CPU seconds of this thread for one product of the shapes of a small model."""
    inputs = torch.ones(512, 256, device=device())
    weight = torch.ones(1024, 256, device=device(), requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.thread_time()
    with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
        functional.linear(inputs, weight).sum().backward()
    seconds = time.thread_time() - began
    torch.set_num_threads(threads)
    return seconds
