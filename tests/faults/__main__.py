"""`python -m faults [ID …] [--tries-scale 0.1]`: one JSON object per fault on stdout, then a table on stderr.

Exit code 1 when a fault was not survived, or could not be provoked on this machine.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from faults.matrix import Fault, is_survived, load, run, scaled


def main(arguments: list[str] | None = None) -> int:
    """Run the faults that are named, or all; the exit code."""
    known = load()
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help=f"of {', '.join(known)}; F01: all that begin so; none: all"
    )
    parser.add_argument("--tries-scale", type=float, default=1.0, help="share of the tries; 1: the figures to hold")
    given = parser.parse_args(arguments)
    chosen = [known[id] for id in known if not given.ids or {id, id.partition(".")[0]} & set(given.ids)]
    if unknown := set(given.ids) - {name for each in chosen for name in (each.id, each.id.partition(".")[0])}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    with scaled(given.tries_scale):
        lines = [told(each) for each in chosen]
    Console(stderr=True).print(table(lines))
    return 0 if lines and all(map(is_survived, lines)) else 1


def told(fault: Fault) -> dict[str, Any]:
    """Provoke a fault in a temporary folder and print its line."""
    with tempfile.TemporaryDirectory(prefix=f"attune-{fault.id}-", ignore_cleanup_errors=True) as folder:
        line = run(fault, Path(folder))
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return line


def table(lines: Iterable[dict[str, Any]]) -> Table:
    """The report for people."""
    report = Table("fault", "what", "tries", "survived", "seconds", "")
    for line in lines:
        verdict = "" if is_survived(line) else f"not run: {line['not_run']}" if "not_run" in line else "NOT SURVIVED"
        counts = (str(line[name]) for name in ("tries", "survived", "seconds"))
        report.add_row(line["fault"], line["what"], *counts, verdict)
    return report


if __name__ == "__main__":
    logging.getLogger("attune").setLevel(logging.ERROR)  # damage is provoked thousands of times
    sys.exit(main())
