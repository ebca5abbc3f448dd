"""Decoder-only models: GPT-2, Llama, Qwen and the rest of AutoModelForCausalLM."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tasks import templates
from tasks.progress import progress
from tasks.schema import IGNORE_INDEX

LOGITS_IN_BATCH = 2**26
SMALL_PARAMETERS = 5_000_000

Row = Mapping[str, Any]

disable_progress_bar()  # the Trainer and from_pretrained would draw one for every checkpoint


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in `folder`, on the GPU where there is one, ready to evaluate."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
    )
    return _on_device(model).eval()


def from_scratch(folder: Path, seed: int) -> PreTrainedModel:
    """A model of the same shape as the one in `folder`, randomly initialised."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return _on_device(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa"))


def save(model: PreTrainedModel, base: Path, folder: Path) -> None:
    """Write `model` as safetensors in the precision that the base model is stored in."""
    stored = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32
    model.to(stored).save_pretrained(folder)


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _on_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model where it will run; a small one gets a single CPU thread.

    The operations of a small model are too short to share, and threads that wait for each other spin.  On two shared
    cores (2026-11-22) 60 steps of the quickstart took 6.4 s with two threads, but beside another training job 40 steps
    of twice the tokens took 64 s; with one thread 60 steps took 9.7 s alone and 10.7 s beside another such job.
    """
    if model.num_parameters() < SMALL_PARAMETERS:
        torch.set_num_threads(1)
    return model.to(device())


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Right-pad packed rows to one length.

    Rows hold input_ids, labels and position_ids; the result holds each as int64 of shape (rows, longest).  Positions
    begin anew at 0 with each document, and the padding is a document of its own: that is how attention, given no
    mask and no cache, keeps documents apart.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([list(row[name]) + [fill] * (longest - len(row[name])) for row in rows])

    positions = [list(row["position_ids"]) + list(range(longest - len(row["position_ids"]))) for row in rows]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORE_INDEX),
        "position_ids": torch.tensor(positions),
    }


def token_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy in nats of each token with the one before it as its predictor; 0 where it is not supervised.

    logits (rows, length, vocabulary), labels (rows, length) -> (rows, length - 1).  Label smoothing gives the target
    1 - e and spreads e evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567).
    """
    return functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2),
        labels[:, 1:],
        ignore_index=IGNORE_INDEX,
        reduction="none",
        label_smoothing=label_smoothing,
    )


@torch.inference_mode()
def example_losses(model: PreTrainedModel, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """For each row the summed loss of its supervised tokens, in nats, and their number.

    Batches are cut so that their logits stay below LOGITS_IN_BATCH numbers, whatever the vocabulary.
    """
    model.eval()
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    tokens_in_batch = LOGITS_IN_BATCH // model.config.vocab_size
    for chosen in _by_tokens([len(row["input_ids"]) for row in rows], tokens_in_batch):
        batch = collate([{"position_ids": range(len(rows[i]["input_ids"])), **rows[i]} for i in chosen])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        sums = token_losses(model(**batch, use_cache=False).logits, labels).sum(dim=1)
        counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
        for index, total, count in zip(chosen, sums.tolist(), counts.tolist(), strict=True):
            losses[index] = (total, count)
    return losses


def generation_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding up to a stop token of the tokenizer's chat template."""
    stops = templates.stop_token_ids(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    return GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=pad, max_new_tokens=max_new_tokens)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, batch_size: int, title: str
) -> list[list[int]]:
    """The tokens that `model` answers to each prompt, without the prompt and from the stop token on cut off.

    Prompts of similar length are answered together, left-padded.
    """
    answers: list[list[int]] = [[]] * len(prompts)
    groups = list(_by_length([len(prompt) for prompt in prompts], batch_size))
    for chosen in progress(groups, title, total=len(groups), unit="batches"):
        longest = max(len(prompts[i]) for i in chosen)
        pads = [longest - len(prompts[i]) for i in chosen]
        ids = [[config.pad_token_id] * pad + list(prompts[i]) for pad, i in zip(pads, chosen, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        output = model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
        )
        for index, answer in zip(chosen, output[:, longest:].tolist(), strict=True):
            answers[index] = _until_stop(answer, config.eos_token_id)
    return answers


def _by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions of items in batches of similar length, the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def _by_tokens(lengths: Sequence[int], tokens_in_batch: int) -> Iterator[list[int]]:
    """Positions of items in batches of similar length, of at most `tokens_in_batch` tokens with their padding."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        size = max(1, tokens_in_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _until_stop(answer: list[int], stop_token_ids: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in stop_token_ids), len(answer))
    return answer[:end]
