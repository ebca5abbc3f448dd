"""The engine: the same artifacts whatever works on the shards, and no worker outlives its parent."""

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import write_jsonl
from shard_work import data_stages, fail, kill, which_process

from tasks import engine
from tasks.config import EngineConfig
from tasks.errors import AttuneError

LOCAL = EngineConfig(processes=2)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are started without waiting whether it is worth it."""
    monkeypatch.setattr(engine, "PATIENCE_SECONDS", 0.0)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five files with equal rows and near-duplicates across them, each a part of its own."""
    monkeypatch.setattr("tasks.collect.PART_BYTES", 1)
    (tmp_path / "sources").mkdir()
    for number in range(5):
        rows = [
            {"instruction": f"Count from {n} to {n + 40}, and then tell me about the number.", "task": f"t{n % 3}",
             "output": " ".join(str(each + (number * 3 if n % 7 == 0 else n)) for each in range(n, n + 40))}
            for n in range(200)
        ]  # fmt: skip
        write_jsonl(tmp_path / "sources" / f"{number}.jsonl", rows)
    return tmp_path / "sources"


def test_processes_leave_the_same_bytes_as_one_process(tmp_path, sources):
    here = data_stages(tmp_path / "here", sources, None)
    assert len([path for path in here if path.startswith("clean/examples")]) == 5
    assert data_stages(tmp_path / "processes", sources, LOCAL) == here


def test_results_come_in_order_from_several_processes_and_one_shard_stays_here():
    with engine.using(LOCAL):
        found = engine.map_shards(which_process, [(number,) for number in range(6)], "test")
        assert [number for number, _ in found] == list(range(6))
        assert len({process for _, process in found} - {os.getpid()}) == 2
        assert engine.map_shards(which_process, [(0,)], "test") == [(0, os.getpid())]


def test_one_process_works_here_alone():
    with engine.using(EngineConfig(processes=1)):
        found = engine.map_shards(which_process, [(number,) for number in range(3)], "test")
    assert found == [(number, os.getpid()) for number in range(3)]


def test_a_worker_shows_no_bars_uses_one_thread_and_leaves_ctrl_c_to_its_parent():
    here = signal.getsignal(signal.SIGINT)
    with engine.using(LOCAL):
        assert engine.map_shards(os.getenv, [("TQDM_DISABLE",)] * 2, "test") == ["1", "1"]
        assert engine.map_shards(operator.call, [(pa.cpu_count,)] * 2, "test") == [1, 1]
        assert engine.map_shards(signal.getsignal, [(signal.SIGINT,)] * 2, "test") == [signal.SIG_IGN] * 2
    assert signal.getsignal(signal.SIGINT) is here


def test_no_process_and_no_engine_is_left_behind_also_after_a_failure():
    with pytest.raises(AttuneError, match="bad"), engine.using(LOCAL):
        engine.map_shards(fail, [(0,), (1,)], "test")
    assert multiprocessing.active_children() == []
    assert engine.map_shards(which_process, [(0,), (1,)], "test") == [(0, os.getpid()), (1, os.getpid())]


def test_an_engine_inside_another_gives_way_to_it_again():
    with engine.using(LOCAL):
        with engine.using(EngineConfig(processes=1)):
            pass
        found = engine.map_shards(which_process, [(0,), (1,)], "test")
    assert os.getpid() not in {process for _, process in found}


def test_little_work_starts_no_process(monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE_SECONDS", 0.7)
    with engine.using(LOCAL):
        found = engine.map_shards(which_process, [(number,) for number in range(9)], "test")
    assert [number for number, _ in found] == list(range(9))
    here = [process == os.getpid() for _, process in found]
    assert here[:3] == [True] * 3 and not any(here[5:]), "the first ones here, the last ones elsewhere"


def test_a_worker_that_is_killed_is_told_plainly():
    with engine.using(LOCAL), pytest.raises(AttuneError, match=r"ended suddenly.*engine\.processes lower"):
        engine.map_shards(kill, [(0,), (1,)], "test")


def test_what_fails_in_a_worker_fails_here_in_the_same_words():
    with engine.using(LOCAL), pytest.raises(AttuneError, match="shard 0 is bad"):
        engine.map_shards(fail, [(0,), (1,)], "test")


def test_workers_die_with_their_parent(tmp_path):
    """SIGKILL of the parent alone leaves no process behind (PR_SET_PDEATHSIG)."""
    code = (
        "import os, sys, time; sys.path[:0] = sys.argv[1:3]\n"
        "from tasks import engine; from tasks.config import EngineConfig; import shard_work\n"
        "if __name__ == '__main__':\n"
        "    with engine.using(EngineConfig(processes=2)):\n"
        "        engine.PATIENCE_SECONDS = 0\n"
        "        found = engine.map_shards(shard_work.which_process, [(n,) for n in range(4)], 'test')\n"
        "        print(*sorted({process for _, process in found}), flush=True)\n"
        "        time.sleep(60)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    here = Path(__file__).parent
    with subprocess.Popen([sys.executable, script, here.parent, here], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")
def test_a_worker_whose_parent_died_before_it_could_ask_ends_at_once():
    code = "from tasks.parent import end_with; end_with({}); print('lives')"
    here = Path(__file__).parent.parent
    orphan, child = (
        subprocess.run([sys.executable, "-c", code.format(parent)], cwd=here, capture_output=True, check=False)
        for parent in (2**30, os.getpid())
    )
    assert (orphan.returncode, child.stdout) == (-signal.SIGKILL, b"lives\n")


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_cluster_that_is_not_there_is_told_plainly():
    config = EngineConfig(kind="ray", address="127.0.0.1:1")
    with pytest.raises(AttuneError, match=r"engine"), engine.using(config):
        pass
