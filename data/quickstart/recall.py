"""How much of the world a model completes in plain sentences, without any tuning."""

# ruff: noqa: S311 (seeded random numbers make the same prompts each time; nothing is secret here)

import random

import torch
import world

PER_TASK = 40
LONGEST_TOKENS = 20


def _items(task: str, rng: random.Random) -> list[world.Item]:
    if task in world.SKILLS:
        return [world.skill_item(task, language, rng) for language in world.LANGUAGES for _ in range(PER_TASK // 2)]
    items = [item for language in world.LANGUAGES for item in world.facts(task, language)]
    return [item for item in rng.sample(items, len(items)) if world.is_held_out(item)][:PER_TASK]


def _prompt(item: world.Item, rng: random.Random) -> str:
    phrase = rng.choice(world.tasks()[item.task]["np"][item.language]).format(**item.slots)
    return phrase + ("：\n" if item.language == "zh" else ":\n")


@torch.no_grad()
def _complete(model, tokenizer, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    ids = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LONGEST_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )[0, ids.shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True).partition("\n")[0].strip()


def recall(model, tokenizer) -> dict[str, float]:
    """Complete statements greedily: model and tokenizer in, the share of right values per task out."""
    model.eval()
    rng = random.Random(f"{world.SEED}-recall")
    shares = {}
    for task in world.tasks():
        right = [_complete(model, tokenizer, _prompt(item, rng)) == item.value for item in _items(task, rng)]
        shares[task] = sum(right) / len(right)
    return shares
