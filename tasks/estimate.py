"""Estimate: what a training will cost, told before anything is spent.

The memory of a training is counted, not guessed: one step and one validation batch run on tensors that have a shape but
no content, and the bytes that are alive at a time are added up.
"""

import logging
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PreTrainedModel

from tasks import adapters, checkpoints, precision
from tasks.config import FineTuneConfig
from tasks.devices import device
from tasks.families import load_family
from tasks.held_out import class_names
from tasks.job import steps
from tasks.layout import PACKS
from tasks.ledger import read
from tasks.losses import LOGITS_IN_CHUNK, ChunkedCrossEntropy
from tasks.schema import IGNORE_INDEX

log = logging.getLogger("attune.estimate")

PROCESS_BYTES = 1050 * 2**20
"""What the process of a run holds before a training on a CPU: Python, torch, transformers, Prefect, earlier stages."""

HEAP = 1.3
"""What glibc's heap takes from the system for a byte that is alive: 1.2 to 1.4 in full training (2026-11-22), more with
gradient checkpointing, whose tensors come and go in many sizes."""

BYTES_IN_4_BITS = 0.56
"""Of a weight with qlora, with the scale that 64 of them share."""


@dataclass(frozen=True)
class Rows:
    """The rows of a training, packed where they are packed: for each one its tokens, labels and supervised tokens."""

    tokens: np.ndarray
    labels: np.ndarray
    supervised: np.ndarray

    def packed(self, packs: np.ndarray) -> "Rows":
        """The rows that are made of these; `packs` says for each which one it is in."""
        return Rows(*(np.bincount(packs, each).astype(int) for each in (self.tokens, self.labels, self.supervised)))


@dataclass(frozen=True)
class Batch:
    """The largest batch of one forward pass."""

    rows: int
    tokens: int  # of the longest row; of an encoder-decoder what is asked
    labels: int  # of the longest row
    supervised: int  # tokens of all rows together


@dataclass(frozen=True)
class Estimate:
    """What a training will cost."""

    steps: int  # optimizer steps of all systems, without early stopping
    tokens: int  # that these steps are trained on, without padding
    peak_memory_bytes: int  # of the process on a CPU, of the device on a GPU
    disk_bytes: int  # that it needs at a time: checkpoints and tuned models
    model_bytes: int  # of one of these models, as it is published


def predict(config: FineTuneConfig, base: Path, formatted: Path, family: str) -> dict[str, int]:
    """The fields of Estimate for the training of the artifact of format in `formatted`."""
    table = read(formatted / "train", columns=["input_ids", "labels"])
    ends = np.cumsum(lengths := pc.list_value_length(table["labels"]).to_numpy())
    supervised = np.cumsum(pc.list_flatten(table["labels"]).to_numpy() != IGNORE_INDEX)[ends - 1]
    rows = Rows(pc.list_value_length(table["input_ids"]).to_numpy(), lengths, np.diff(supervised, prepend=0))
    if (formatted / PACKS).exists():
        rows = rows.packed(read(formatted / PACKS)["pack"].to_numpy())
    return asdict(estimate(config, base, family, rows, labels=class_names(formatted)))


def estimate(
    config: FineTuneConfig, base: Path, family: str, rows: Rows, *, scale: float = 1.0, labels: Sequence[str] = ()
) -> Estimate:
    """What fine_tune costs on `scale` times these rows.

    base: the folder of the base model, of which only config.json is read; labels: the names of a classifier's classes.
    """
    config = config.model_copy(update={"precision": precision.choose(config.precision)})
    systems = 2 if config.scratch_control else 1
    total = max(1, round(scale * len(rows.tokens)))
    in_epoch = steps(config.model_copy(update={"epochs": 1.0, "max_steps": 0}), total)
    size = min(config.per_device_batch_size, len(rows.tokens))
    batch = Batch(size, int(rows.tokens.max()), int(rows.labels.max()), size * int(rows.supervised.max()))
    plain = _model(config, base, family, labels)
    dtype = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32
    stored = plain.num_parameters() * dtype.itemsize
    memory, checkpoint = _memory(_trainee(plain, config, family), config, family, batch)
    return Estimate(
        steps=systems * steps(config, total),
        tokens=systems * round(rows.tokens.mean() * total * steps(config, total) / in_epoch),
        peak_memory_bytes=memory + (0 if torch.cuda.is_available() else PROCESS_BYTES),
        disk_bytes=systems * (_checkpoints_at_a_time(config) * checkpoint + stored),
        model_bytes=stored,
    )


def _memory(model: PreTrainedModel, config: FineTuneConfig, family: str, batch: Batch) -> tuple[int, int]:
    """Bytes of a training in memory, and of one checkpoint; what `model` holds is replaced by tensors of no content."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model.to_empty(device=device())
        model.tie_weights()
        states = _optimizer_bytes(model, config)
        checkpoint = sum(4 * weight.numel() for weight in _trained(model)) + states
        return _weight_bytes(model, config) + states + _working_bytes(model, config, family, batch, fake), checkpoint


def _checkpoints_at_a_time(config: FineTuneConfig) -> int:
    """The newest ones, the best one, and the one that is being written, if there are so many validations."""
    validations = config.evals_per_epoch * (1 if config.max_steps else config.epochs)
    return min(checkpoints.KEPT + 2, max(1, round(validations)))


def _model(config: FineTuneConfig, base: Path, family: str, labels: Sequence[str]) -> PreTrainedModel:
    """The base as shapes alone."""
    shape = AutoConfig.from_pretrained(base, trust_remote_code=False, **({"num_labels": len(labels)} if labels else {}))
    frozen_in_bf16 = config.method != "full" and config.precision == "bf16"
    with torch.device("meta"):
        return load_family(family).AUTO.from_config(shape, dtype=torch.bfloat16 if frozen_in_bf16 else torch.float32)


def _trainee(model: PreTrainedModel, config: FineTuneConfig, family: str) -> PreTrainedModel:
    """The model as it is trained."""
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    with torch.device("meta"):
        return (model if config.method == "full" else adapters.add(model, family, config)).train()


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _weight_bytes(model: PreTrainedModel, config: FineTuneConfig) -> int:
    bytes_each = BYTES_IN_4_BITS if config.method == "qlora" else 0
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    return sum(4 * weight.numel() for weight in _trained(model)) + round(
        sum(weight.numel() * (bytes_each or weight.itemsize) for weight in frozen)
    )


def _optimizer_bytes(model: PreTrainedModel, config: FineTuneConfig) -> int:
    """AdamW and Adam hold two moments, SGD its momentum; Adafactor a row and a column of each matrix."""
    trained = _trained(model)
    if config.optimizer == "adafactor":
        return sum(4 * (sum(weight.shape[-2:]) if weight.dim() > 1 else weight.numel()) for weight in trained)
    bytes_each = {"adamw": 8, "adam": 8, "adamw_8bit": 2, "sgd": 4 if config.momentum else 0}[config.optimizer]
    return bytes_each * sum(weight.numel() for weight in trained)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and that are alive, and the most there were at a time."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


def _working_bytes(model: Any, config: FineTuneConfig, family: str, batch: Batch, fake: FakeTensorMode) -> int:
    """What a step and a validation need at their worst moments, together: the heap keeps what a step has freed.

    Some models look at values, such as those that choose experts by them; theirs is a rule of thumb.
    """
    share = 1.0 if torch.cuda.is_available() else HEAP
    try:
        alive = _step_bytes(model, config, family, batch, fake) + _validation_bytes(model, family, batch, fake)
        return round(share * alive)
    except RuntimeError as error:
        log.info("the memory of a step is a rule of thumb, as it cannot be counted: %s", str(error).partition("\n")[0])
        return _rule_of_thumb(model, config, batch)


def _step_bytes(model: Any, config: FineTuneConfig, family: str, batch: Batch, fake: FakeTensorMode) -> int:
    """Activations, gradients and the logits of the loss.

    From the second pass of a step on the gradients of those before are there already.
    """
    with _Alive(model.parameters()) as alive:
        for _ in range(min(2, config.gradient_accumulation_steps)):
            _loss(model, family, batch, fake, bf16=config.precision == "bf16").backward()
    model.zero_grad()
    return alive.peak


def _validation_bytes(model: Any, family: str, batch: Batch, fake: FakeTensorMode) -> int:
    """A batch of validation, which is measured in tokens, is in fp32 and has no gradients."""
    kind = load_family(family)
    rows = max(1, kind.TOKENS_IN_BATCH // (batch.tokens + (batch.labels if family == "encoder_decoder" else 0)))
    larger = Batch(rows, batch.tokens, batch.labels, max(1, batch.supervised * rows // batch.rows))
    with _Alive(model.parameters()) as alive, torch.no_grad():
        _loss(model, family, larger, fake, bf16=False)
    return alive.peak


def _rule_of_thumb(model: Any, config: FineTuneConfig, batch: Batch) -> int:
    """Gradients; 34 numbers of 16 bits a token, layer and width (Korthikanti et al. 2022, arXiv:2205.05198); logits."""
    shape = model.config
    numbers = 34 * batch.rows * (batch.tokens + batch.labels) * shape.hidden_size * shape.num_hidden_layers
    activations = numbers * (2 if config.precision == "bf16" else 4) // 2
    logits = min(LOGITS_IN_CHUNK, batch.supervised * getattr(shape, "vocab_size", 1))
    return activations + 4 * sum(weight.numel() for weight in _trained(model)) + 3 * 4 * logits


def _loss(model: Any, family: str, batch: Batch, fake: FakeTensorMode, *, bf16: bool) -> torch.Tensor:
    """The loss of a batch without content, computed as `losses.summed_loss` does it.

    What that takes out of the batch depends on the labels' values, so here the first tokens are taken.
    """
    rows = [{"input_ids": [0] * batch.tokens, "labels": [0] * batch.labels}] * batch.rows
    inputs = {name: fake.from_tensor(tensor) for name, tensor in load_family(family).collate(rows).items()}
    inputs = {name: tensor.to(device()) for name, tensor in inputs.items()}
    labels = inputs.pop("labels")
    if family == "encoder_decoder":
        inputs["decoder_input_ids"] = labels
    head, taken = model.get_output_embeddings(), []

    def take(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        taken.append(arguments[0].flatten(0, -2)[: batch.supervised].clone())
        return (taken[0][:0], *arguments[1:])

    with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
        if head is None:
            return model(**inputs).logits.sum()
        with head.register_forward_pre_hook(take):
            model(**inputs, use_cache=False)
    dtype = torch.bfloat16 if bf16 else torch.float32
    targets = torch.zeros(len(taken[0]), dtype=torch.long)
    return ChunkedCrossEntropy.apply(taken[0], head.weight, head.bias, targets, 0.0, dtype)
