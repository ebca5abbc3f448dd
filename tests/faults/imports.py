"""What a run imports late and reads once, for a fork server: a run that is forked from it begins at once."""

import gc
import importlib
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: threads of a tiny model only wait for each other

from transformers import LlamaForCausalLM, Trainer

from tasks import fingerprint
from tasks.stages import STAGES

LATE = ["tasks.families.decoder_only", "tasks.exporters.huggingface", "tasks.metrics.rouge_l", "tasks.shingles"]
LATE += ["peft", "evaluate", "pandas", "ftfy", "numba.typed", "matplotlib.backends.backend_svg", "defusedxml"]

for stage in STAGES.values():
    importlib.import_module(stage.module)
    fingerprint.code_digests(stage.module)
for name in LATE:
    importlib.import_module(name)
gc.freeze()  # a collection in a run need not look at all of this again

__all__ = ["LlamaForCausalLM", "Trainer"]
