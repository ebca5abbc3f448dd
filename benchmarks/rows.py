"""Rows to measure on: instruction-like English with planted near-duplicates, and which rows truly are near-duplicates.

Lengths and word frequencies are those of Alpaca's 52,002 rows: an instruction of 60 characters, an input in two of five
rows, an output of 280 on average; ten words make a fifth of the text.  In one row of 60 there is something to repair.
"""

import itertools
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

NGRAM = 3
THRESHOLD = 0.8

PLANTED = 0.06
"""Share of the rows that are another row with other last words."""

JACCARDS = (0.6, 0.7, 0.75, 0.8, 0.82, 0.85, 0.9, 0.95, 1.0)
"""Similarities of planted pairs, each as often as the others."""

_COMMON = """the a to of and in is for that with it on as are be this by from an can or at was you your their not have
has its which they one more will all use been if we there may also when make how other most such into than these some
time each our but about people were them used many like what so two help between new first who world any way his"""
_STEMS = """work plan paint water light garden market river mountain school letter number story machine window doctor
farmer engine signal colour pattern village winter summer harbour bridge forest island teacher student travel record
report measure answer question reason effect change design model system process data energy power market price cost
trade product service custom health food meal recipe sugar bread fruit plant seed flower animal bird fish horse music
song dance film picture camera phone screen computer network program code function value table graph chart method result
test sample group team leader member friend family child parent brother citizen country city street house room kitchen
door wall floor roof stone metal wood paper glass cloth cotton silk leather oil coal gas wind storm rain snow cloud sky
star planet moon ocean coast beach boat ship train road car wheel road station airport ticket hotel guest visit holiday
history culture language word sentence poem novel chapter author reader writer editor press news event law court judge
police army peace vote party office manager job salary tax bank loan credit budget profit risk goal skill habit memory
mind idea dream fear hope love joy anger trust doubt respect honour duty right truth science physics chemist biology
atom cell gene virus blood heart brain muscle bone skin sleep rest sport game player ball race record score prize"""
_PREFIXES = ("", "re", "un", "de", "up", "co", "in", "ex")
_SUFFIXES = ("", "s", "ing", "ed", "er", "ly", "ful")
_TASKS = """Write Explain Describe List Summarise Compare Rewrite Translate Classify Suggest Generate Create Find Give
Name Identify Design Edit Calculate Discuss""".split()  # noqa: SIM905
_FOREIGN = ("café", "naïve", "São Paulo", "20 °C", "“quoted”", "it’s", "a – b", "cafÃ©", "zero\u200bwidth")
_WORD = re.compile(r"\w+")

Row = dict[str, str]


def make(count: int, seed: int = 0) -> Iterator[Row]:
    """The same `count` rows at every call: instruction, input, output."""
    draw = random.Random(seed)  # noqa: S311
    words = _Words(draw)
    recent: list[Row] = []
    for _ in range(count):
        if len(recent) > 100 and draw.random() < PLANTED:
            yield _near(draw.choice(recent), draw.choice(JACCARDS), words)
            continue
        row = _row(words, draw)
        if row["output"].count(" ") > 30:
            recent = [*recent[-999:], row]
        yield row


def text(row: Row) -> str:
    """What is compared of a row."""
    return "\n".join((row["instruction"], row["input"], row["output"]))


def write(path: Path, rows: Iterator[Row]) -> int:
    """Write JSON Lines with the row's number as `id` and its `text` beside the three fields; returns how many."""
    number = -1
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({"id": str(number), **row, "text": text(row)}, ensure_ascii=False) + "\n")
    return number + 1


def read(path: Path) -> Iterator[Row]:
    """Rows of a JSON Lines file with instruction, input and output."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield {name: row.get(name) or "" for name in ("instruction", "input", "output")}


def grams(content: str) -> set[tuple[str, ...]]:
    """The word n-grams of a text; all its words where they are fewer."""
    found = _WORD.findall(content.lower())
    return set(zip(*(found[at:] for at in range(NGRAM)), strict=False)) or ({tuple(found)} if found else set())


class Truth(NamedTuple):
    """Which rows truly are near-duplicates: all pairs of a sampled row with any row."""

    sample: set[int]
    pairs: list[tuple[int, int]]


def truth(texts: Sequence[str], sample: int) -> Truth:
    """The pairs whose exact Jaccard similarity is at least THRESHOLD, found by counting what rows have in common."""
    chosen = random.Random(1).sample(range(len(texts)), min(sample, len(texts)))  # noqa: S311
    holders = defaultdict(list)
    sizes = {}
    for row in chosen:
        mine = grams(texts[row])
        sizes[row] = len(mine)
        for gram in mine:
            holders[gram].append(row)
    pairs = []
    for row, content in enumerate(texts):
        mine = grams(content)
        shared = Counter(itertools.chain.from_iterable(holders.get(gram, ()) for gram in mine))
        pairs += [
            (other, row)
            for other, both in shared.items()
            if other != row and both >= THRESHOLD * (len(mine) + sizes[other] - both)
        ]
    return Truth(set(chosen), pairs)


class _Words:
    """Draws words: the frequency of the n-th most common one falls as 1 / (n + 2)."""

    def __init__(self, draw: random.Random) -> None:
        formed = itertools.product(_PREFIXES, _SUFFIXES, dict.fromkeys(_STEMS.split()))
        self.draw = draw
        self.words = [*_COMMON.split(), *(before + stem + after for before, after, stem in formed)]
        self.weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(self.words))))

    def take(self, count: int) -> list[str]:
        return self.draw.choices(self.words, cum_weights=self.weights, k=count)

    def prose(self, chars: float) -> str:
        """Sentences of about so many characters."""
        left, sentences = max(1, round(chars / 6.3)), []
        while left > 0:
            words = self.take(min(left, self.draw.randint(6, 22)))
            left -= len(words)
            if len(words) > 12:
                words[len(words) // 2] += ","
            sentences.append(" ".join(words).capitalize() + ".")
        return " ".join(sentences)


def _row(words: _Words, draw: random.Random) -> Row:
    instruction = f"{draw.choice(_TASKS)} {words.prose(draw.lognormvariate(3.85, 0.35)).lower()}"
    given = words.prose(draw.lognormvariate(3.6, 0.9)) if draw.random() < 0.39 else ""
    output = words.prose(min(1600, draw.lognormvariate(5.1, 0.95)))
    if draw.random() < 0.07:
        output = f"{draw.choice(_FOREIGN)} {output}"
    return {"instruction": instruction, "input": given, "output": output}


def _near(row: Row, jaccard: float, words: _Words) -> Row:
    """The row with as many last words changed as give this similarity, where its output has so many."""
    output = row["output"].split()
    count = len(_WORD.findall(text(row))) - NGRAM + 1
    changed = min(len(output), round(count * (1 - jaccard) / (1 + jaccard)))
    return row | {"output": " ".join([*output[: len(output) - changed], *words.take(changed)]).rstrip(".") + "."}
