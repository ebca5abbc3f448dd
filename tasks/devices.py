"""Where a model runs."""

import torch
from transformers import PreTrainedModel

SMALL_PARAMETERS = 5_000_000


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model where it will run; a small one gets a single CPU thread.

    The operations of a small model are too short to share, and threads that wait for each other spin.  On two shared
    cores (2026-11-22) 60 steps of the quickstart took 6.4 s with two threads, but beside another training job 40 steps
    of twice the tokens took 64 s; with one thread 60 steps took 9.7 s alone and 10.7 s beside another such job.
    """
    if model.num_parameters() < SMALL_PARAMETERS:
        torch.set_num_threads(1)
    return model.to(device())
