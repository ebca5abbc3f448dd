"""Plain sentences, cards and tables about the world: the text that the base model is pre-trained on."""

# ruff: noqa: S311 (seeded random numbers make the same text each time; nothing is secret here)

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import world
import yaml


@dataclass(frozen=True)
class Mix:
    """How much of the text is about skills, and how often each skill comes, where that is not once."""

    name: str
    skill_share: float
    weights: dict[str, float] = field(hash=False)


FACTS = Mix(
    "facts",
    0.4,
    {"sort_up": 2, "sort_down": 2, "largest": 2, "smallest": 2, "reverse": 2, "add": 3, "subtract": 3},
)
PRACTICE = Mix(
    "practice",
    0.75,
    FACTS.weights
    | {"count_items": 2, "uppercase": 2, "next_number": 1.5, "repeat": 1.5}
    | {"number_words": 0.7, "first_item": 0.7, "last_item": 0.5, "lowercase": 0.5},
)
ARITHMETIC = Mix(
    "arithmetic",
    0.6,
    {"add": 8, "subtract": 8, "next_number": 3}
    | dict.fromkeys(("sort_up", "sort_down", "largest", "smallest", "reverse", "count_items", "repeat"), 1.5)
    | {"first_item": 0.7, "last_item": 0.5, "lowercase": 0.7, "uppercase": 0.7},
)


# A space goes between Chinese text and a Latin letter or digit, so that the tokenizer finds words whole.
_BORDER = re.compile("(?<=[\u4e00-\u9fff：，、。])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u4e00-\u9fff])")


@cache
def frames() -> dict:
    """Read frames.yaml: sentence, card and table frames, filler sentences and names, by language."""
    return yaml.safe_load((world.HERE / "frames.yaml").read_text(encoding="utf-8"))


@cache
def _weights(mix: Mix) -> tuple[list, list]:
    """Every (task, language) with its share of the text: facts by table size, skills as the mix says."""
    pairs, weights = [], []
    fact_total = sum(len(world.facts(t, lang)) for t in world.fact_tasks() for lang in world.LANGUAGES)
    skill_total = 2 * sum(mix.weights.get(skill, 1) for skill in world.SKILLS)
    for task in world.tasks():
        for language in world.LANGUAGES:
            pairs.append((task, language))
            if task in world.SKILLS:
                weights.append(mix.skill_share * mix.weights.get(task, 1) / skill_total)
            else:
                weights.append((1 - mix.skill_share) * len(world.facts(task, language)) / fact_total)
    return pairs, weights


@cache
def _in_order(task: str, language: str) -> tuple[world.Item, ...]:
    """The facts of a task in a fixed order: the same subjects come first in every task and language."""

    def place(item: world.Item) -> bytes:
        return hashlib.sha256(item.group.partition(":")[2].encode()).digest()

    return tuple(sorted(world.facts(task, language), key=place))


def _draw(task: str, language: str, share: float, rng: random.Random) -> world.Item | None:
    """An item of the task, facts from the first `share` of its table; None where the language lacks it."""
    if task in world.SKILLS:
        return world.skill_item(task, language, rng)
    items = _in_order(task, language)
    return rng.choice(items[: max(3, int(share * len(items)))]) if items else None


def _people(language: str, rng: random.Random) -> dict:
    name, other = rng.sample(frames()["names"][language], 2)
    return {"name": name, "other": other}


def statement(item: world.Item, kind: str, rng: random.Random) -> str:
    """State one item in a random frame: the item and `sentence` or `card` in, the text out."""
    task = world.tasks()[item.task]
    phrase = rng.choice(task["np"][item.language]).format(**item.slots)
    label = rng.choice(task["label"][item.language])
    # A subject at the start of a sentence keeps its spelling: only the article is raised.
    raised = "T" + phrase[1:] if phrase.startswith("the ") else phrase
    texts = {"np": phrase, "Np": raised, "label": label, "Label": label[0].upper() + label[1:]}
    frame = rng.choice(frames()[item.language][kind])
    return _BORDER.sub(" ", frame.format(**item.slots, **texts, **_people(item.language, rng)))


def _filler(language: str, rng: random.Random) -> str:
    column = "word" if language == "en" else "word_zh"
    thing = rng.choice(world.table("words"))[column]
    return rng.choice(frames()["filler"][language]).format(thing=thing, **_people(language, rng))


def _single(task: str, language: str, share: float, mix: Mix, rng: random.Random) -> str:
    """One statement: what stands before the value is about nothing else, so its subject is easy to find."""
    kind = rng.choice(("sentence", "card", "card"))
    return statement(_draw(task, language, share, rng), kind, rng) + rng.choice(("", "\n"))


def _mixed(task: str, language: str, share: float, mix: Mix, rng: random.Random) -> str:
    """Some statements of any tasks in one language, with a filler sentence here and there."""
    others = [name for name, _ in rng.choices(*_weights(mix), k=rng.randint(1, 4))]
    parts = []
    for name in [task, *others]:
        item = _draw(name, language, share, rng)
        if item:
            parts.append(statement(item, rng.choice(("sentence", "card", "card")), rng))
        if rng.random() < 0.12:
            parts.append(_filler(language, rng))
    return rng.choice(("\n", "\n\n")).join(parts)


def _prose(task: str, language: str, share: float, mix: Mix, rng: random.Random) -> str:
    """Full sentences of one task in one paragraph."""
    items = [_draw(task, language, share, rng) for _ in range(rng.randint(2, 4))]
    return (" " if language == "en" else "").join(statement(item, "sentence", rng) for item in items)


def _table(task: str, language: str, share: float, mix: Mix, rng: random.Random) -> str:
    """A heading and some rows of one task, all in the same shape."""
    label = rng.choice(world.tasks()[task]["label"][language])
    frame = rng.choice(frames()[language]["table"])
    rows = [frame.format(**_draw(task, language, share, rng).slots) for _ in range(rng.randint(3, 6))]
    return "\n".join([label[0].upper() + label[1:], *rows])


def documents(seed: int | str, share: float = 1.0, mix: Mix = FACTS) -> Iterator[str]:
    """Yield documents without end: a seed, the share of the facts to draw from and a mix in, texts out."""
    rng = random.Random(seed)
    pairs, weights = _weights(mix)
    while True:
        task, language = rng.choices(pairs, weights)[0]
        make = rng.choices((_single, _mixed, _prose, _table), (70, 20, 5, 5))[0]
        yield make(task, language, share, mix, rng)
