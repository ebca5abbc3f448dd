"""The locked dependencies start what they must start (F33)."""

import importlib.metadata
import json
import re
import urllib.request
from pathlib import Path

from prefect_server import running_server

from faults.matrix import ROOT, Outcome, fault

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)")


@fault("F33", "a dependency in another version than the tested one")
def locked(folder: Path) -> Outcome:
    """What is installed is what constraints.txt says, and with it a Prefect server starts and answers."""
    outcome = Outcome()
    with outcome.attempt("constraints.txt"):
        pins = [_PIN.match(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
        wanted = {pin[1]: pin[2] for pin in pins if pin}
        found = {name: version for name in wanted if (version := _installed(name))}
        outcome.figures["pinned"], outcome.figures["installed"] = len(wanted), len(found)
        assert {name: (found[name], wanted[name]) for name in found if found[name] != wanted[name]} == {}
        assert {"prefect", "fastapi", "sqlalchemy", "torch"} <= {name.lower() for name in found}
    with outcome.attempt("prefect server"), running_server(folder) as url:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:  # noqa: S310
            assert json.load(answer) is True
        with urllib.request.urlopen(f"{url}/admin/version", timeout=10) as answer:  # noqa: S310
            outcome.figures["prefect"] = json.load(answer)
        assert outcome.figures["prefect"] == _installed("prefect")
    return outcome


def _installed(name: str) -> str:
    """Its version without the mark of a build, or "" when it is not installed, as with an extra."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""
