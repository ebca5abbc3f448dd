"""Write the instruction data of the quickstart: `python data/quickstart/make_data.py [folder]`."""

# ruff: noqa: S311 (seeded random numbers make the same files each time; nothing is secret here)

import json
import random
import sys
from pathlib import Path

import world

SKILL_ROWS = 115  # per skill, in the tuned half
FACT_PHRASINGS = 2  # phrasings per fact, language and direction
TEST_FACTS = {"seen": 24, "new": 20}  # rows per fact task
TEST_SKILLS = {"seen": 12, "new": 12}  # rows per skill
BROKEN_LINES = 14
DUPLICATES = 32
NEAR_DUPLICATES = 32
EMPTY = 10
MOJIBAKE = 10
REPLACEMENT = 8
OVER_LONG = 5


def _row(item: world.Item, phrasing: str) -> dict:
    instruction, given = world.ask(item, phrasing)
    return {
        "task": item.task,
        "instruction": instruction,
        "input": given,
        "output": item.value,
        "group": item.group,
    }


def _phrasings(item: world.Item, kind: str) -> list[str]:
    return world.tasks()[item.task]["ask"][item.language][kind]


def _fact_items(task: str, held_out: bool) -> list[world.Item]:
    items = [item for language in world.LANGUAGES for item in world.facts(task, language)]
    return [item for item in items if world.is_held_out(item) == held_out]


def _skill_items(task: str, held_out: bool, count: int, rng: random.Random) -> list[world.Item]:
    """Draw different inputs of a skill from one half, languages in turn; fewer where it has no more."""
    items: dict[tuple, world.Item] = {}
    for attempt in range(count * 40):
        item = world.skill_item(task, world.LANGUAGES[attempt % 2], rng)
        if world.is_held_out(item) == held_out and len(items) < count:
            items.setdefault((item.language, item.group), item)
    return list(items.values())


def instructions() -> list[dict]:
    """The clean rows for tuning: the tuned half of every fact and skill in seen phrasings."""
    rng = random.Random(f"{world.SEED}-instructions")
    rows = []
    for task in world.fact_tasks():
        for item in _fact_items(task, held_out=False):
            phrasings = rng.sample(_phrasings(item, "seen"), FACT_PHRASINGS)
            rows += [_row(item, phrasing) for phrasing in phrasings]
    for task in world.skill_tasks():
        for item in _skill_items(task, False, SKILL_ROWS, rng):
            rows.append(_row(item, rng.choice(_phrasings(item, "seen"))))
    return rows


def tests(kind: str) -> tuple[list[dict], list[dict]]:
    """Test rows of the held-out half: `seen` or `new` phrasings in, fact rows and skill rows out."""
    rng = random.Random(f"{world.SEED}-test-{kind}")
    fact_rows, skill_rows = [], []
    for task in world.fact_tasks():
        items = _fact_items(task, held_out=True)
        for item in rng.sample(items, min(TEST_FACTS[kind], len(items))):
            fact_rows.append(_row(item, rng.choice(_phrasings(item, kind))))
    for task in world.skill_tasks():
        for item in _skill_items(task, True, TEST_SKILLS[kind], rng):
            skill_rows.append(_row(item, rng.choice(_phrasings(item, kind))))
    return fact_rows, skill_rows


def _line(row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _near_duplicate(row: dict, rng: random.Random) -> dict:
    """The same question with another case, spacing or punctuation."""
    text = row["instruction"]
    variants = (text.lower(), text.upper(), text.replace(" ", "  "), text.rstrip(".?。？"), f" {text} !")
    changed = rng.choice(variants)
    return row | {"instruction": changed if changed != text else f"{text}  "}


def _long(row: dict) -> dict:
    return row | {"input": " ".join([row["instruction"]] * 400)}


def dirty_lines(rows: list[dict]) -> list[str]:
    """Broken, doubled and damaged lines as raw data has them, all made from the given rows."""
    rng = random.Random(f"{world.SEED}-dirt")
    chinese = [row for row in rows if not row["output"].isascii()]
    lines = [_line(row)[:-7] for row in rng.sample(rows, BROKEN_LINES)]
    lines.append(_line([row["instruction"] for row in rng.sample(rows, 2)]))
    lines += [_line(row) for row in rng.sample(rows, DUPLICATES)]
    lines += [_line(_near_duplicate(row, rng)) for row in rng.sample(rows, NEAR_DUPLICATES)]
    lines += [_line(row | {"output": ""}) for row in rng.sample(rows, EMPTY)]
    for row in rng.sample(chinese, MOJIBAKE):
        lines.append(_line(row | {"output": row["output"].encode("utf-8").decode("latin-1")}))
    for row in rng.sample(chinese, REPLACEMENT):
        lines.append(_line(row | {"output": "\ufffd" + row["output"][1:]}))
    lines += [_line(_long(row)) for row in rng.sample(rows, OVER_LONG)]
    return lines


def files() -> dict[str, list[str]]:
    """All data files: file name to its lines."""
    rows = instructions()
    lines = [_line(row) for row in rows] + dirty_lines(rows)
    random.Random(f"{world.SEED}-order").shuffle(lines)
    result = {"instructions.jsonl": lines}
    for kind, suffix in (("seen", ""), ("new", "_new_phrasings")):
        for name, test_rows in zip(("facts", "skills"), tests(kind), strict=True):
            result[f"test_{name}{suffix}.jsonl"] = [_line(row) for row in test_rows]
    return result


def main() -> None:
    """Write every file into the folder given, or beside this script."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else world.HERE
    for name, lines in files().items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(f"{len(lines):6} rows  {name}")


if __name__ == "__main__":
    main()
