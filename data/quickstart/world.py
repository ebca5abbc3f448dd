"""The facts and skills of the quickstart world, and which half of them tuning may see."""

# ruff: noqa: S311 (seeded random numbers make the same world each time; nothing is secret here)

import csv
import hashlib
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

HERE = Path(__file__).parent
SEED = 2024
CASE_WORDS = 120  # the words that the world also writes in capitals
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Item:
    """One subject with its value, seen from one task in one language.

    `slots` holds what phrasings may name: `s` (subject), `v` (value) and, for some skills, their operands.
    """

    task: str
    language: str
    group: str
    slots: dict

    @property
    def value(self) -> str:
        """The right answer."""
        return self.slots["v"]


@cache
def tasks() -> dict:
    """Read tasks.yaml: task name to its noun phrases, labels, instructions and, for facts, its table."""
    return yaml.safe_load((HERE / "tasks.yaml").read_text(encoding="utf-8"))


@cache
def table(name: str) -> tuple[dict, ...]:
    """Read one fact table: its name in, its rows out; an empty cell means that the fact is left out."""
    with open(HERE / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def cells(name: str) -> set[str]:
    """Every text in a fact table."""
    return {cell for row in table(name) for cell in row.values() if cell}


def fact_tasks() -> list[str]:
    """Names of the tasks that ask for facts."""
    return [name for name, task in tasks().items() if "facts" in task]


def skill_tasks() -> list[str]:
    """Names of the skills that instructions ask for; the others only occur in pre-training text."""
    return [name for name, task in tasks().items() if "facts" not in task and "ask" in task]


@cache
def facts(task: str, language: str) -> tuple[Item, ...]:
    """All items of a fact task in one language; none if the task is not phrased in it."""
    spec = tasks()[task]["facts"]
    if language not in spec:
        return ()
    subject, value = spec[language]
    items = []
    for row in table(spec["table"]):
        group = f"{spec['group']}:{next(iter(row.values()))}"
        pairs = [(row[subject], row[value])]
        if spec.get("both_ways"):
            pairs.append((row[value], row[subject]))
        items += [Item(task, language, group, {"s": s, "v": v}) for s, v in pairs if s and v]
    return tuple(items)


@cache
def held_out_facts() -> frozenset[str]:
    """The groups of facts that tuning never sees: a seeded half of every kind of fact."""
    kinds: dict[str, set] = {}
    for task in fact_tasks():
        for item in facts(task, "en"):
            kinds.setdefault(tasks()[task]["facts"]["group"], set()).add(item.group)
    held = set()
    for kind, groups in sorted(kinds.items()):
        order = sorted(groups)
        random.Random(f"{SEED}-{kind}").shuffle(order)
        held.update(order[: len(order) // 2])
    return frozenset(held)


def is_held_out(item: Item) -> bool:
    """True when tuning must not see the item: facts by their group, skills by a hash of their input."""
    if "facts" in tasks()[item.task]:
        return item.group in held_out_facts()
    return hashlib.sha256(item.group.encode()).digest()[0] % 2 == 0


# ---- skills: each function draws one input and returns its slots ----

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
_ONES += ["twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ZH_DIGITS = "零一二三四五六七八九"


def _english_number(n: int) -> str:
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")


def _chinese_number(n: int) -> str:
    tens, ones = divmod(n, 10)
    text = "" if tens == 0 else "十" if tens == 1 else f"{_ZH_DIGITS[tens]}十"
    return text + (_ZH_DIGITS[ones] if ones or not tens else "")


def _words(rng: random.Random, language: str, count: int) -> list[str]:
    column = "word" if language == "en" else "word_zh"
    return [row[column] for row in rng.sample(table("words"), count)]


def _listed(words: list[str], language: str) -> str:
    return (", " if language == "en" else "、").join(words)


def _sort(rng, language, reverse):
    numbers = rng.sample(range(10), rng.choice((3, 3, 4)))
    return {"s": _spaced(numbers), "v": _spaced(sorted(numbers, reverse=reverse))}


def _spaced(values) -> str:
    return " ".join(map(str, values))


def _extreme(rng, language, pick):
    numbers = rng.sample(range(1, 100), 3)
    return {"s": _spaced(numbers), "v": str(pick(numbers))}


def _add(rng, language):
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    return {"s": f"{a} + {b}", "v": str(a + b), "a": a, "b": b}


def _subtract(rng, language):
    a = rng.randint(1, 30)
    b = rng.randint(1, a)
    return {"s": f"{a} - {b}", "v": str(a - b), "a": a, "b": b}


def _next_number(rng, language):
    n = rng.randint(1, 300)
    return {"s": str(n), "v": str(n + 1)}


def _number_words(rng, language):
    n = rng.randint(1, 99)
    return {
        "s": _english_number(n) if language == "en" else _chinese_number(n),
        "v": str(n),
        "group": f"number_words:{n}",
    }


def _item_at(rng, language, index):
    words = _words(rng, language, rng.randint(3, 5))
    return {"s": _listed(words, language), "v": words[index]}


def _reverse(rng, language):
    words = _words(rng, language, rng.choice((3, 3, 4)))
    return {"s": _listed(words, language), "v": _listed(words[::-1], language)}


def _count_items(rng, language):
    count = rng.randint(2, 7)
    return {"s": _listed(_words(rng, language, count), language), "v": str(count)}


def _repeat(rng, language):
    (word,), n = _words(rng, language, 1), rng.randint(2, 4)
    return {"s": f"{word} x {n}", "v": _spaced([word] * n), "w": word, "n": n}


def case_words() -> list[str]:
    """The English words that the skills of upper and lower case use."""
    return [row["word"] for row in table("words")[:CASE_WORDS]]


def _uppercase(rng, language):
    word = rng.choice(case_words())
    return {"s": word, "v": word.upper(), "group": f"case:{word}"}


def _lowercase(rng, language):
    word = rng.choice(case_words())
    return {"s": word.upper(), "v": word, "group": f"case:{word}"}


SKILLS = {
    "sort_up": lambda rng, language: _sort(rng, language, False),
    "sort_down": lambda rng, language: _sort(rng, language, True),
    "largest": lambda rng, language: _extreme(rng, language, max),
    "smallest": lambda rng, language: _extreme(rng, language, min),
    "add": _add,
    "subtract": _subtract,
    "next_number": _next_number,
    "number_words": _number_words,
    "first_item": lambda rng, language: _item_at(rng, language, 0),
    "last_item": lambda rng, language: _item_at(rng, language, -1),
    "reverse": _reverse,
    "count_items": _count_items,
    "repeat": _repeat,
    "uppercase": _uppercase,
    "lowercase": _lowercase,
}


def skill_item(task: str, language: str, rng: random.Random) -> Item:
    """Draw one item of a skill: task, language and a random source in, the item out."""
    slots = SKILLS[task](rng, language)
    return Item(task, language, slots.get("group", f"{task}:{slots['s']}"), slots)


def ask(item: Item, phrasing: str) -> tuple[str, str]:
    """Fill a phrasing with an item: the item and `instruction || input` in, the two texts out."""
    instruction, _, given = phrasing.format(**item.slots).partition(" || ")
    return instruction, given
