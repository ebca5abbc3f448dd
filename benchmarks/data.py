"""The data stages beside what people use for them: python benchmarks/data.py

Two works, each by every system on the same rows, one process each:
- near_duplicates: which rows of texts in memory (text-dedup, datatrove: of a file) are near another one;
- data: collect, clean and split, from JSON Lines to files.

Prints one JSON object a line (`work`, `system`, `value`, `unit`, `ratio_to_ours`), then tables.  CPU seconds are user
and system time with child processes, the median of --repeat runs; those with start-up hold the interpreter, the
imports, the reading of the texts and, for ours, the loading of compiled code.  Recall: of the pairs with an exact
Jaccard similarity of 0.8 or more, between a sample of rows and all rows, the share of which a row was removed.
Precision: of the removed rows of the sample, the share that is in such a pair.  A system that is not installed is named
as not measured.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import rows
from systems import FIGURES, SYSTEMS

HERE = Path(__file__).parent
OURS = "attune"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "RAYON", "NUMEXPR")}
INSTALL = {
    "rensa": "rensa",
    "datasketch": "datasketch",
    "text-dedup": "text-dedup",
    "datatrove": "'datatrove[processing]' spacy orjson",
    "py-data-juicer": "py-data-juicer aiohttp",
}
"""Package -> what `pip install` needs; the last three, each in an environment of its own."""

UNITS = {
    "work_cpu_s": "CPU s",
    "all_cpu_s": "CPU s with start-up",
    "rows_per_cpu_s": "rows/CPU s",
    "peak_mib": "MiB at peak",
    "removed": "rows removed",
    "recall": "recall",
    "precision": "precision",
}
DECIMALS = {"work_cpu_s": 2, "all_cpu_s": 2, "recall": 3, "precision": 3}

LONG_CPU_S = 20
"""What takes longer is measured once: the noise of a run is less than a second."""

Figures = dict[str, float]


class Measured(NamedTuple):
    """What one system took for one work."""

    system: str
    version: str
    figures: Figures


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print."""
    options = _options(arguments)
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}")
    for work, counts in (("near_duplicates", options.near_rows), ("data", options.data_rows)):
        by_count = {}
        for count in counts:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                path = Path(folder) / "rows.jsonl"
                taken = rows.write(path, _rows(options.rows_from, count))
                by_count[taken] = _compare(work, path, taken, options)
            _print_table(_title(work, taken), by_count[taken])
        if by_count:
            _print_growth(work, by_count)
    if OURS in options.systems and options.near_rows:
        _print_compilation(options)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    every = list(dict.fromkeys(name for systems in SYSTEMS.values() for name in systems))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--near-rows", type=int, nargs="*", default=[52_002], help="sizes of the first work")
    add("--data-rows", type=int, nargs="*", default=[10_000], help="sizes of the second work")
    add("--systems", nargs="+", default=every, choices=every, help="which are measured")
    add("--python", action="append", default=[], metavar="SYSTEM=PATH", help="interpreter of a system's environment")
    add("--rows-from", type=Path, help="JSON Lines with instruction, input and output instead of made rows")
    add(
        "--repeat",
        type=int,
        default=3,
        help=f"runs of each system that takes less than {LONG_CPU_S} CPU seconds; the median counts",
    )
    add("--sample", type=int, default=5_000, help="rows for which all true pairs are computed")
    add("--folder", type=Path, help="where scratch files go")
    options = parser.parse_args(arguments)
    options.python = dict(each.partition("=")[::2] for each in options.python)
    for system, path in options.python.items():
        if shutil.which(path) is None:
            parser.error(f"--python {system}: no interpreter at {path!r}")
    return options


def processor() -> str:
    """The processor's name where Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _rows(path: Path | None, count: int) -> Iterator[rows.Row]:
    return rows.make(count) if path is None else (row for row, _ in zip(rows.read(path), range(count), strict=False))


def _compare(work: str, path: Path, count: int, options: argparse.Namespace) -> list[Measured]:
    """Measure the systems one after another and print their figures; ours comes first."""
    truth = None
    if work == "near_duplicates":
        truth = rows.truth([rows.text(row) for row in rows.read(path)], options.sample)
    measured: list[Measured] = []
    for system in (name for name in SYSTEMS[work] if name in options.systems):
        python = options.python.get(system, sys.executable)
        try:
            runs = [_run(python, work, system, path)]
            again = options.repeat - 1 if runs[0]["all_cpu_s"] < LONG_CPU_S else 0
            runs += [_run(python, work, system, path) for _ in range(again)]
        except subprocess.CalledProcessError as error:
            _say_not_measured(_title(work, count), system, SYSTEMS[work][system][0], error)
            continue
        measured.append(Measured(system, runs[0]["version"], _figures(runs, count, truth)))
        _print_figures(_title(work, count), measured[-1], measured[0])
    return measured


def _say_not_measured(title: str, system: str, package: str, error: subprocess.CalledProcessError) -> None:
    """A line for a peer that is not there or fails; ours has to run."""
    if system == OURS:
        raise SystemExit(error.stderr)
    why = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
    print(f"not measured: {title}: {system}: {why} (pip install {INSTALL[package]})", flush=True)


def _run(python: str, work: str, system: str, path: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """One run in a process of its own; raises CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        caches = {"HF_HOME": folder, "DATA_JUICER_CACHE_HOME": folder, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        environment = os.environ | ONE_THREAD | caches | {"PYTHONPATH": str(HERE.parent)} | (env or {})
        command = [python, str(HERE / "systems.py"), work, system, str(path), folder]
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, text=True)  # noqa: S603
        return json.loads((Path(folder) / FIGURES).read_text())


def _figures(runs: list[dict[str, Any]], count: int, truth: rows.Truth | None) -> Figures:
    figures = {name: statistics.median(run[name] for run in runs) for name in ("work_cpu_s", "all_cpu_s", "peak_mib")}
    figures["rows_per_cpu_s"] = count / figures["work_cpu_s"]
    removed = runs[0]["removed"]
    if removed is None:
        return figures
    if truth is None:
        return figures | {"removed": removed}
    return figures | {"removed": len(removed)} | _quality(set(removed), truth)


def _quality(removed: set[int], truth: rows.Truth) -> Figures:
    """Recall and precision on the sample; 1 where there is nothing to find or nothing was removed."""
    found = [pair for pair in truth.pairs if not removed.isdisjoint(pair)]
    rightly = {row for row, _ in truth.pairs} & removed
    return {
        "recall": len(found) / len(truth.pairs) if truth.pairs else 1.0,
        "precision": len(rightly) / len(removed & truth.sample) if removed & truth.sample else 1.0,
    }


def _title(work: str, count: int) -> str:
    return f"{work} of {count:,} rows"


def _print_figures(title: str, measured: Measured, ours: Measured) -> None:
    for name, value in measured.figures.items():
        ratio = value / ours.figures[name] if ours.system == OURS and ours.figures[name] else None
        print_line(title, f"{measured.system} {measured.version}", value, UNITS[name], ratio)


def print_line(work: str, system: str, value: float, unit: str, ratio: float | None) -> None:
    """One figure as a line of JSON."""
    ratio_to_ours = None if ratio is None else round(ratio, 4)
    line = {"work": work, "system": system, "value": round(value, 6), "unit": unit, "ratio_to_ours": ratio_to_ours}
    print(json.dumps(line), flush=True)


def _print_table(title: str, measured: list[Measured]) -> None:
    shown = [name for name in UNITS if measured and name in measured[0].figures]
    print(f"\n{title}\n{'':24}" + "".join(f"{UNITS[name]:>20}" for name in shown) + f"{'× our CPU s':>13}")
    for system, version, figures in measured:
        values = "".join(f"{figures.get(name, math.nan):>20,.{DECIMALS.get(name, 0)}f}" for name in shown)
        ratio = figures["work_cpu_s"] / measured[0].figures["work_cpu_s"]
        print(f"{system + ' ' + version:24}{values}{ratio:>13.1f}")
    print(flush=True)


def _print_growth(work: str, by_count: dict[int, list[Measured]]) -> None:
    """How cost and memory of each system grow from the least to the most rows."""
    few, many = min(by_count), max(by_count)
    for before in by_count[few] if many > few else []:
        for after in (each for each in by_count[many] if each.system == before.system):
            title, name = f"{work}, from {few:,} to {many:,} rows", f"{after.system} {after.version}"
            for figure in ("work_cpu_s", "peak_mib"):
                growth = after.figures[figure] / before.figures[figure]
                print_line(title, name, growth, f"times the {UNITS[figure]}", None)
            more = (after.figures["peak_mib"] - before.figures["peak_mib"]) * 2**20 / (many - few)
            print_line(title, name, more, "bytes at peak per row more", None)


def _print_compilation(options: argparse.Namespace) -> None:
    """What the very first run on a machine costs: the compilation of our inner loops."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "rows.jsonl"
        rows.write(path, rows.make(100))
        cache = {"NUMBA_CACHE_DIR": str(Path(folder) / "numba")}
        cold, warm = (_run(sys.executable, "near_duplicates", OURS, path, cache)["all_cpu_s"] for _ in range(2))
    print_line("first run on a machine", OURS, cold - warm, "CPU s of compilation, once", None)


if __name__ == "__main__":
    main()
