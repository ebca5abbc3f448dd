"""Cross-entropy over supervised tokens, with logits only where there is a label.

Between the last hidden states and the loss stands the largest matrix of a small model.  A hook on it takes the hidden
states of the supervised tokens out of the batch, so that no other token costs logits.  Where the model does nothing
else with its logits, they are made and used up chunk by chunk, and never stand in memory as a whole.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

LOGITS_IN_CHUNK = 2**25
"""Logits that are held at a time, as numbers: 128 MiB in fp32."""

_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model's logits are its output layer's and nothing else, as far as it was asked."""


def summed_loss(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    supervised: torch.Tensor,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of a batch in nats, summed over its supervised tokens; it can be differentiated.

    inputs of the model; supervised (rows, length) bool: whose next token, or answer, is known; targets (tokens,) int64:
    what it is, in the order of `supervised`.  Label smoothing gives the target 1 - e and spreads e evenly over the
    vocabulary (Szegedy et al. 2016, arXiv:1512.00567).
    """
    with _at_supervised(model, inputs, supervised) as run:
        head, hidden, logits, dtype = run()
    if logits is not None:
        return functional.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing, reduction="sum")
    return ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, targets, label_smoothing, dtype)


@torch.no_grad()
def token_losses(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], supervised: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """As `summed_loss`, but of each supervised token alone: (tokens,) in fp32, without a gradient or smoothing."""
    with _at_supervised(model, inputs, supervised) as run:
        head, hidden, logits, dtype = run()
    if logits is not None:
        return functional.cross_entropy(logits.float(), targets, reduction="none")
    weight, bias = head.weight.to(dtype), head.bias
    return torch.cat(
        [
            functional.cross_entropy(_logits(hidden[part].to(dtype), weight, bias), targets[part], reduction="none")
            for part in _chunks(len(targets), len(weight))
        ]
        or [hidden.new_zeros(0, dtype=torch.float32)]
    )


def row_losses(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], supervised: torch.Tensor, targets: torch.Tensor
) -> list[tuple[float, int]]:
    """For each row of a batch the summed loss of its supervised tokens, and their number."""
    each = token_losses(model, inputs, supervised, targets).double()
    sums = each.new_zeros(len(supervised)).index_add_(0, supervised.nonzero()[:, 0], each)
    return list(zip(sums.tolist(), supervised.sum(1).tolist(), strict=True))


@contextmanager
def _at_supervised(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], supervised: torch.Tensor
) -> Iterator[Callable[[], tuple[Any, torch.Tensor, torch.Tensor | None, torch.dtype]]]:
    """A call that runs the model and gives its output layer, what goes into it, its logits unless they are plain."""
    inner = getattr(model, "module", model)
    head = inner.get_output_embeddings()
    plain = inner is model and _is_plain(model, head, inputs)
    taken: dict[str, Any] = {}

    def take(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]
        device = hidden.device.type
        taken["dtype"] = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        taken["hidden"] = hidden[supervised]
        return ((taken["hidden"][:0] if plain else taken["hidden"]).unsqueeze(0), *arguments[1:])

    def run() -> tuple[Any, torch.Tensor, torch.Tensor | None, torch.dtype]:
        logits = model(**inputs, use_cache=False).logits
        return head, taken["hidden"], None if plain else logits[0], taken["dtype"]

    handle = head.register_forward_pre_hook(take)
    try:
        yield run
    finally:
        handle.remove()


@torch.no_grad()
def _is_plain(model: nn.Module, head: Any, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model's logits are head(hidden) as they come out of it: some models cap or scale them afterwards."""
    if model in _plain:
        return _plain[model]
    made: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _, __, output: made.append(output))
    was_training = model.training
    try:
        logits = model.eval()(**{name: tensor[:1] for name, tensor in inputs.items()}, use_cache=False).logits
    finally:
        handle.remove()
        model.train(was_training)
    whole = type(head) is nn.Linear and not hasattr(head.weight, "device_mesh")  # not shared among processes
    _plain[model] = whole and len(made) == 1 and torch.equal(made[0].float(), logits.float())
    return _plain[model]


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of hidden states against targets.

    hidden (tokens, width), weight (vocabulary, width), bias (vocabulary,) or None, targets (tokens,).  The gradient is
    made in the forward pass, chunk by chunk, while the logits are there: neither they nor their gradient are kept
    (Wijmans et al. 2024, arXiv:2411.09009, have the idea for GPUs).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, label_smoothing, dtype):
        """The loss, and its gradients for `backward`; `dtype` is that of the matrix products."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        of_bias = torch.zeros_like(bias) if wants_bias else None
        for part in _chunks(len(targets), len(weight)):
            taken, target = hidden[part].to(dtype), targets[part].unsqueeze(1)
            logits = _logits(taken, matrix, bias)
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - (1 - label_smoothing) * logits.gather(1, target)).sum()
            if label_smoothing:
                total -= label_smoothing * logits.mean(1).sum()
            slope = logits.sub_(norm).exp_()  # from here on the gradient of the loss by the logits
            slope.scatter_add_(1, target, slope.new_full(target.shape, label_smoothing - 1))
            if label_smoothing:
                slope -= label_smoothing / len(weight)
            if of_bias is not None:
                of_bias += slope.sum(0)
            slope = slope.to(dtype)
            if of_hidden is not None:
                of_hidden[part] = slope @ matrix
            if of_weight is not None:
                of_weight += slope.T @ taken
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx, by):
        """The gradients, times that of what became of the loss."""
        return *(grad if grad is None else grad * by for grad in ctx.saved_tensors), None, None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    return logits if bias is None else logits + bias


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, LOGITS_IN_CHUNK // vocabulary)
    return (slice(begin, begin + size) for begin in range(0, tokens, size))
