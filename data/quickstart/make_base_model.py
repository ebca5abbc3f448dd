"""Make the quickstart's base model: tokenizer and pre-training on plain sentences of the world.

`python data/quickstart/make_base_model.py [--out FOLDER]`
"""

import argparse
import copy
import itertools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import torch
import world
from make_tokenizer import make_tokenizer
from recall import recall
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH_TOKENS = 64
WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Cycle:
    """One stretch of pre-training: the learning rate rises to `learning_rate` and falls linearly to zero."""

    mix: corpus.Mix
    tokens: int
    learning_rate: float
    phases: tuple  # (share of the facts, share of the tokens, rows per batch)


# With few facts the model soon learns to look a fact up by its subject; the others then come quickly. All at once
# left it guessing for millions of tokens. Skills take practice, with enough facts in between that none is forgotten.
CYCLES = (
    Cycle(corpus.FACTS, 10_000_000, 2e-3, ((0.1, 0.1, 8), (0.3, 0.1, 8), (1.0, 0.8, 16))),
    Cycle(corpus.PRACTICE, 5_000_000, 1.5e-3, ((1.0, 1.0, 16),)),
    Cycle(corpus.ARITHMETIC, 6_000_000, 1.5e-3, ((1.0, 1.0, 16),)),
)


def config(vocabulary: int, eos: int) -> LlamaConfig:
    """The model's shape: vocabulary size and end token in, a Llama configuration out."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
        attn_implementation="eager",  # the fastest of all for short rows on a CPU
    )


def token_batches(tokenizer, cycle: Cycle) -> list[torch.Tensor]:
    """Encode the phases' documents one after another: a cycle in, batches of token ids out."""
    encode, eos = tokenizer.backend_tokenizer.encode_batch, tokenizer.eos_token_id
    batches = []
    for share, part, rows in cycle.phases:
        documents = corpus.documents(f"{world.SEED}-{cycle.mix.name}-{share}", share, cycle.mix)
        wanted, pieces = int(part * cycle.tokens), []
        while wanted > 0:
            ids = [[*encoding.ids, eos] for encoding in encode(list(itertools.islice(documents, 5000)))]
            pieces.append(np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64)[:wanted])
            wanted -= len(pieces[-1])
        stream = torch.from_numpy(np.concatenate(pieces))
        size = rows * LENGTH_TOKENS
        batches += stream[: len(stream) // size * size].view(-1, rows, LENGTH_TOKENS).unbind()
    return batches


def rate_share(step: int, steps: int) -> float:
    """Share of the full learning rate at a step: a short warm-up, then linearly to zero."""
    return min((step + 1) / WARM_UP_STEPS, 1 - step / steps)


def train(model, batches: list[torch.Tensor], learning_rate: float) -> None:
    """Pre-train on the batches, once through, in bf16."""

    @torch.compile(dynamic=False)
    def loss_of(ids):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    adamw = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    steps, seen = len(batches), 0
    start, mean = time.time(), None
    model.train()
    for step, ids in enumerate(batches):
        adamw.param_groups[0]["lr"] = learning_rate * rate_share(step, steps)
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
        seen += ids.numel()
        if step % 500 == 499 or step == steps - 1:
            speed = seen / (time.time() - start)
            print(f"step {step + 1:6}/{steps} loss {mean:.3f} {speed:.0f} tokens/s", flush=True)


def card(parameters: int, minutes: float, recalled: dict[str, float]) -> str:
    """The model card as Markdown text."""
    table = "\n".join(f"| {task} | {share:.0%} |" for task, share in recalled.items())
    return f"""# Base model of the quickstart world

A Llama of {parameters:,} parameters, pre-trained by `make_base_model.py` on plain sentences, cards and
tables about a small world (`corpus.py`). It has never seen an instruction, a question or a chat token and
brings no chat template.

- tokens seen: {sum(cycle.tokens for cycle in CYCLES):,}
- time: {minutes:.0f} minutes on 2 CPU cores
- licence: that of the project; the text it learnt from is made by the project

Share of statements it completes ("the capital of ...:", then the value; up to 40 a task, greedy; facts only
from the half that tuning never sees):

| task | completed |
|---|---|
{table}
"""


def main() -> None:
    """Make the tokenizer, pre-train, and put the finished folder in place of the old one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=world.HERE / "base", help="folder of the finished model")
    options = parser.parse_args()
    torch.manual_seed(world.SEED)
    tokenizer = make_tokenizer()
    model = LlamaForCausalLM(config(-(-len(tokenizer) // 64) * 64, tokenizer.eos_token_id))
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens", flush=True)
    start = time.time()
    for cycle in CYCLES:
        train(model, token_batches(tokenizer, cycle), cycle.learning_rate)
    minutes = (time.time() - start) / 60
    temporary = options.out.with_name(options.out.name + ".new")
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    text = card(model.num_parameters(), minutes, recall(model, tokenizer))
    (temporary / "README.md").write_text(text, encoding="utf-8")
    shutil.rmtree(options.out, ignore_errors=True)
    temporary.rename(options.out)


if __name__ == "__main__":
    main()
