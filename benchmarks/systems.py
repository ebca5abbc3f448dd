"""One system at one work, in its own process and interpreter: python systems.py WORK SYSTEM ROWS FOLDER

Leaves FOLDER/figures.json: `version`; `work_cpu_s` (from texts or file to result) and `all_cpu_s` (that and start-up),
both with child processes; `peak_mib`; `removed` (near_duplicates: the numbers of the rows that go; data: how many go),
or null.
The setting is the same for all: word 3-grams, threshold 0.8, 18 bands of 7 MinHashes, one process.
"""

import importlib.metadata
import json
import platform
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rows import NGRAM, THRESHOLD

BANDS, BAND_ROWS = 18, 7
HASHES = BANDS * BAND_ROWS
MAX_CHARS = 20_000
VALIDATION = TEST = 0.05

FIGURES = "figures.json"

Work = Callable[[], list[int] | int | None]


def ours_near(path: Path, folder: Path) -> Work:
    """The first of several near-duplicates is kept; candidates are verified by exact Jaccard similarity."""
    import numpy as np
    import pyarrow as pa

    from tasks.config import Similarity
    from tasks.near_duplicates import band_keys, candidates, distinct, jaccard, resolve
    from tasks.shingles import shingles

    similarity = Similarity(threshold=THRESHOLD, ngram=NGRAM)

    def find(rows: list[str]) -> list[int]:
        column = pa.array(rows, pa.large_string())
        pairs = distinct((candidates(keys) for keys in band_keys(column, similarity)), len(rows))
        held = np.sort(pairs, axis=None)
        held = held[np.flatnonzero(np.diff(held, prepend=-1))]
        similar = jaccard(np.searchsorted(held, pairs), shingles(column.take(pa.array(held)), similarity))
        return np.flatnonzero(resolve(pairs[similar >= THRESHOLD], None, len(rows)) >= 0).tolist()

    rows = _texts(path)
    find(["some words to load what is compiled", "some words to load what is compiled"])
    return lambda: find(rows)


def rensa_matrix(path: Path, folder: Path) -> Work:
    """All rows that share a band with another one; nothing is verified, and no row of a pair is kept."""
    return _rensa_flags(path, "digest_matrix_from_token_sets")


def rensa_rho(path: Path, folder: Path) -> Work:
    """As `rensa_matrix`, with signatures that look at some of the n-grams only."""
    return _rensa_flags(path, "digest_matrix_from_token_sets_rho")


def _rensa_flags(path: Path, digest: str) -> Work:
    from rensa import RMinHash, RMinHashLSH

    rows = _texts(path)

    def find() -> list[int]:
        matrix = getattr(RMinHash, digest)(_grams(rows), HASHES, 42)
        flags = RMinHashLSH(THRESHOLD, HASHES, BANDS).query_duplicate_flags_matrix_one_shot(matrix)
        return [row for row, flag in enumerate(flags) if flag]

    return find


def rensa_dedup(path: Path, folder: Path) -> Work:
    """The first of several near-duplicates is kept; candidates are verified by their signatures."""
    from rensa import RMinHashDeduplicator

    rows = _texts(path)

    def find() -> list[int]:
        deduplicator = RMinHashDeduplicator(THRESHOLD, HASHES, True, BANDS)
        kept = deduplicator.add_pairs((str(row), tokens) for row, tokens in enumerate(_grams(rows)))
        return [row for row, stays in enumerate(kept) if not stays]

    return find


def datasketch(path: Path, folder: Path) -> Work:
    """A row goes when it shares a band with one that stays."""
    from datasketch import MinHash, MinHashLSH

    rows = _texts(path)

    def find() -> list[int]:
        index, removed = MinHashLSH(num_perm=HASHES, params=(BANDS, BAND_ROWS)), []
        sets = ([gram.encode() for gram in found] for found in _grams(rows))
        for row, sketch in enumerate(MinHash.generator(sets, num_perm=HASHES)):
            if index.query(sketch):
                removed.append(row)
            else:
                index.insert(row, sketch, check_duplication=False)
        return removed

    return find


def cutting(path: Path, folder: Path) -> Work:
    """The n-grams that rensa and datasketch are given, and nothing else: that part of their cost is Python's."""
    rows = _texts(path)

    def cut() -> None:
        for _ in _grams(rows):
            pass

    return cut


def text_dedup(path: Path, folder: Path) -> Work:
    """Its command for MinHash: from JSON Lines to a dataset on disk."""
    from datasets import load_from_disk
    from text_dedup.minhash import main

    setting = {
        "path": "json", "data_files": path, "split": "train", "cache_dir": folder / "cache", "output": folder / "out",
        "column": "text", "ngram": NGRAM, "min_length": 1, "num_perm": HASHES, "threshold": THRESHOLD, "b": BANDS,
        "r": BAND_ROWS, "hash_func": "xxh3", "num_proc": 1,
    }  # fmt: skip
    arguments = [part for name, value in setting.items() for part in (f"--{name}", str(value))]

    def find() -> list[int]:
        main(arguments, standalone_mode=False)
        return _missing(path, load_from_disk(str(folder / "out"))["id"])

    return find


def datatrove_near(path: Path, folder: Path) -> Work:
    """Its four steps of MinHash, from JSON Lines to JSON Lines; words are those of its English tokenizer."""
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    steps, config = _trove_steps(folder)

    def find() -> list[int]:
        reader = JsonlReader(str(path.parent), glob_pattern=path.name)
        steps([reader], [JsonlWriter(str(folder / "out"), "${rank}.jsonl", compression=None)], config)
        return _missing(path, (row["id"] for row in _json(folder / "out" / "00000.jsonl")))

    return find


def ours_data(path: Path, folder: Path) -> Work:
    """Collect, clean and split, called as the flow calls them."""
    from tasks.clean import clean
    from tasks.collect import collect
    from tasks.config import CleanConfig, CollectConfig, SourceConfig, SplitConfig
    from tasks.split import split

    columns = SourceConfig(path=str(path), format="alpaca")
    stages = (
        (collect, CollectConfig(sources=[columns])),
        (clean, CleanConfig()),
        (split, SplitConfig(validation=VALIDATION, test=TEST)),
    )

    def run() -> int:
        inputs = {function.__name__: folder / function.__name__ for function, _ in stages}
        summaries = []
        for function, config in stages:
            inputs[function.__name__].mkdir()
            summaries.append(function(config, inputs, inputs[function.__name__]))
        return summaries[0].rows_in - summaries[-1].rows_kept

    return run


def datatrove_data(path: Path, folder: Path) -> Work:
    """Repair with ftfy, the same filters, MinHash in four steps, a split by hash, JSON Lines."""
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import create_hash_func

    steps, config = _trove_steps(folder)
    invisible = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")

    def read(_self: object, row: dict[str, str], _path: str, number: int) -> dict[str, Any]:
        fields = {name: row[name] for name in ("instruction", "input", "output")}
        return {"id": str(number), "text": "\n".join(fields.values()), "metadata": fields}

    def remove_invisible(documents: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for document in documents:
            document.text = invisible.sub("", document.text)
            yield document

    def fits(document: Any) -> bool:
        fields = document.metadata
        whole = fields["instruction"].strip() and fields["output"].strip() and "\ufffd" not in document.text
        return bool(whole) and len(document.text) <= MAX_CHARS

    digest = create_hash_func(config.hash_config)

    def split(documents: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for document in documents:
            share = digest(document.metadata["instruction"]) % 1000 / 1000
            cuts = {"test": TEST, "validation": TEST + VALIDATION, "train": 1.0}
            document.metadata["split"] = next(name for name, cut in cuts.items() if share < cut)
            yield document

    def run() -> int:
        reader = JsonlReader(str(path.parent), glob_pattern=path.name, adapter=read)
        kept = JsonlWriter(str(folder / "clean"), "${rank}.jsonl", compression=None)
        result = JsonlWriter(str(folder / "out"), "${split}.jsonl", compression=None)
        steps([reader, FTFYFormatter(), remove_invisible, LambdaFilter(fits), kept], [split, result], config)
        return _lines(path) - sum(map(_lines, (folder / "out").glob("*.jsonl")))

    return run


def datajuicer_data(path: Path, folder: Path) -> Work:
    """Its command on a recipe: repair, the same filters, equal rows, MinHash, JSON Lines; nothing is split."""
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    minhash = {
        "tokenization": "space", "window_size": NGRAM, "lowercase": True, "ignore_pattern": r"[^\w\s]",
        "num_permutations": HASHES, "jaccard_threshold": THRESHOLD, "num_bands": BANDS, "num_rows_per_band": BAND_ROWS,
    }  # fmt: skip
    recipe = {
        "project_name": "benchmark", "dataset_path": str(path), "export_path": str(folder / "out.jsonl"), "np": 1,
        "process": [
            {"fix_unicode_mapper": {}},
            {"remove_specific_chars_mapper": {"chars_to_remove": "\u200b\u200c\u200d\u2060\ufeff"}},
            {"text_length_filter": {"min_len": 3, "max_len": MAX_CHARS}},
            {"document_deduplicator": {}},
            {"document_minhash_deduplicator": minhash},
        ],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))

    def run() -> int:
        DefaultExecutor(init_configs(["--config", str(folder / "recipe.yaml")])).run()
        return _lines(path) - _lines(folder / "out.jsonl")

    return run


SYSTEMS: dict[str, dict[str, tuple[str, Callable[[Path, Path], Work]]]] = {
    "near_duplicates": {
        "attune": ("attune", ours_near),
        "rensa": ("rensa", rensa_dedup),
        "rensa-matrix": ("rensa", rensa_matrix),
        "rensa-rho": ("rensa", rensa_rho),
        "datasketch": ("datasketch", datasketch),
        "n-grams-only": ("", cutting),
        "text-dedup": ("text-dedup", text_dedup),
        "datatrove": ("datatrove", datatrove_near),
    },
    "data": {
        "attune": ("attune", ours_data),
        "datatrove": ("datatrove", datatrove_data),
        "data-juicer": ("py-data-juicer", datajuicer_data),
    },
}
"""Work -> system -> the package that it is in, and what prepares it and returns the work that is measured."""


def _trove_steps(folder: Path) -> tuple[Callable[[list[Any], list[Any], Any], None], Any]:
    """What runs the steps `before` on every document and `after` on those that stay, and its setting."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig

    config = MinhashConfig(
        n_grams=NGRAM,
        num_buckets=BANDS,
        hashes_per_bucket=BAND_ROWS,
        norm_config=TextNormConfig(norm_numbers=False),
        hash_config=HashConfig(precision=64),
    )
    signatures, buckets, gone = (str(folder / name) for name in ("signatures", "buckets", "gone"))

    def execute(pipeline: list[Any], tasks: int = 1) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as logs:
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs).run()

    def run(before: list[Any], after: list[Any], config: MinhashConfig) -> None:
        execute([*before, MinhashDedupSignature(signatures, config)])
        execute([MinhashDedupBuckets(signatures, buckets, config=config)], tasks=BANDS)
        execute([MinhashDedupCluster(buckets, gone, config=config)])
        again = before[:1] if len(before) == 1 else [JsonlReader(str(folder / "clean"))]
        execute([*again, MinhashDedupFilter(gone), *after])

    return run, config


def _texts(path: Path) -> list[str]:
    return [row["text"] for row in _json(path)]


def _json(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _missing(path: Path, ids: Iterable[str]) -> list[int]:
    return sorted(set(range(_lines(path))) - set(map(int, ids)))


def _grams(rows: list[str]) -> Iterator[list[str]]:
    """The word n-grams of each text, as libraries without an own notion of words are given them."""
    word = re.compile(r"\w+")
    for row in rows:
        words = word.findall(row.lower())
        joined = map(" ".join, zip(*(words[at:] for at in range(NGRAM)), strict=False))
        yield list(joined) if len(words) >= NGRAM else [" ".join(words)]


def _cpu() -> float:
    """CPU seconds of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_mib() -> float:
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def main(work: str, system: str, rows: str, folder: str) -> None:
    """Prepare, do the work, say what it took."""
    package, prepare = SYSTEMS[work][system]
    run = prepare(Path(rows), Path(folder))
    began = _cpu()
    removed = run()
    ended = _cpu()
    figures = {
        "version": importlib.metadata.version(package) if package else platform.python_version(),
        "work_cpu_s": ended - began,
        "all_cpu_s": ended,
        "peak_mib": _peak_mib(),
        "removed": removed,
    }
    (Path(folder) / FIGURES).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
