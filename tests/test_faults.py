"""The fault matrix with few tries, and its runner: what did not survive is told, whatever else did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.__main__ import main
from faults.matrix import Fault, NotRun, Outcome, fault, is_survived, run, sample, scaled, tries

OURS = ["F01", "F02", "F05", "F10", "F11", "F12", "F13", "F14", "F15", "F16", "F17", "F18", "F19", "F20", "F21", "F22"]
OURS += ["F23", "F28", "F31", "F32", "F33", "F51", "F52"]
FEW = 0.01
HERE = Path(__file__).parent


def provoke(function) -> dict:
    return run(Fault("F00", "a test", function), Path())


def outcome_of(*errors: Exception | None) -> Outcome:
    outcome = Outcome()
    for number, error in enumerate(errors):
        with outcome.attempt(f"try {number}"):
            if error:
                raise error
    return outcome


def test_a_fault_that_always_survives_is_good():
    line = provoke(lambda _: outcome_of(None, None))
    assert (line["tries"], line["survived"]) == (2, 2) and "failures" not in line
    assert is_survived(line)


@pytest.mark.parametrize("error", [AssertionError("two digests"), OSError("no disk"), KeyError("key")])
def test_one_try_of_many_that_did_not_survive_is_told_and_ends_only_itself(error):
    line = provoke(lambda _: outcome_of(None, error, None))
    assert (line["tries"], line["survived"]) == (3, 2)
    assert "try 1" in line["failures"][0] and error.args[0] in line["failures"][0]
    assert not is_survived(line)


def test_a_bare_assert_is_told_with_its_line():
    def wrong(_: Path) -> Outcome:
        outcome = Outcome()
        with outcome.attempt("a try"):
            digests = ["one", "other"]
            assert digests[0] == digests[1]
        return outcome

    (failure,) = provoke(wrong)["failures"]
    assert "a try: AssertionError" in failure and "test_faults.py" in failure


def test_a_fault_that_raises_or_tries_nothing_is_not_survived():
    def broken(_: Path) -> Outcome:
        raise RuntimeError("it does not even begin")

    assert "it does not even begin" in provoke(broken)["failures"][0]
    assert not is_survived(provoke(broken))
    assert not is_survived(provoke(lambda _: Outcome()))


def test_what_cannot_be_provoked_here_is_never_survived():
    line = provoke(lambda _: outcome_of(None, NotRun("no strace")))
    assert line["not_run"] == "no strace" and (line["tries"], line["survived"]) == (0, 0)
    assert not is_survived(line)


@pytest.fixture
def registered(monkeypatch):
    """Faults that exist for one test only."""
    monkeypatch.setattr("faults.__main__.load", lambda: dict(sorted(mine.items())))
    mine: dict[str, Fault] = {}

    def register(id: str, *errors: Exception | None) -> None:
        mine[id] = Fault(id, f"what {id} does", lambda _: outcome_of(*errors))

    return register


def test_the_exit_code_is_1_as_soon_as_one_fault_did_not_survive(registered, capsys):
    registered("F01.a", None)
    registered("F01.b", None, None)
    registered("F02", None, AssertionError("torn"))
    assert main(["F01"]) == 0
    assert main(["F01.b", "F02"]) == 1
    assert main([]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["fault"] for line in lines] == ["F01.a", "F01.b", "F01.b", "F02", "F01.a", "F01.b", "F02"]
    assert {"fault", "what", "tries", "survived", "seconds"} <= set(lines[0])
    assert "NOT SURVIVED" in err


def test_a_fault_that_cannot_be_run_makes_the_exit_code_1(registered, capsys):
    registered("F01", NotRun("no strace"))
    assert main([]) == 1
    assert json.loads(capsys.readouterr().out)["not_run"] == "no strace"


def test_an_unknown_fault_is_refused_with_the_known_ones(registered, capsys):
    registered("F01.a", None)
    with pytest.raises(SystemExit):
        main(["F99"])
    assert "no such fault: F99; known: F01.a" in capsys.readouterr().err


def test_a_share_of_the_tries_is_never_none_and_spread_over_all():
    assert (tries(200), sample(list(range(10)))) == (200, list(range(10)))
    with scaled(0.01):
        assert (tries(200), tries(5), tries(200, least=7)) == (2, 1, 7)
        assert sample(list(range(100))) == [0, 33, 66]
        assert sample(["a"]) == ["a"]


def test_two_faults_do_not_have_the_same_id(monkeypatch):
    monkeypatch.setattr("faults.matrix.FAULTS", {})
    fault("F00", "one")(outcome_of)
    with pytest.raises(ValueError, match="F00 is registered twice"):
        fault("F00", "another")(outcome_of)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_fault_that_needs_no_server_survives_a_few_tries(tmp_path):
    """In a process of its own, as `make faults` does."""
    command = [sys.executable, "-m", "faults", *OURS, "--tries-scale", str(FEW)]
    env = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=850, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if not is_survived(line)] == [], done.stderr[-3000:]
    assert {line["fault"].partition(".")[0] for line in lines} == set(OURS)
    assert done.returncode == 0
