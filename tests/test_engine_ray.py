"""A real Ray cluster of two nodes leaves the same bytes as this machine alone."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_work import data_stages, fail, which_node
from test_engine import sources

from tasks import engine
from tasks.config import EngineConfig
from tasks.errors import AttuneError

pytestmark = pytest.mark.slow
__all__ = ["sources"]  # a fixture


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineConfig]:
    """Head and second node with one CPU each, on loopback, stopped by their own session."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    folder = tmp_path_factory.mktemp("ray")
    files = tempfile.mkdtemp(prefix="ray")  # a short path: Ray puts sockets there
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--num-cpus=1", "--object-store-memory=200000000", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={files}"]
    environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": str(Path(__file__).parent)}
    nodes = []
    try:
        for options in (head, [f"--address={address}"]):
            command = [ray, "start", "--block", *common, *options]
            with (folder / f"node{len(nodes)}.log").open("w") as log:
                nodes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
            _wait_for_nodes(address, len(nodes), environment)
        yield EngineConfig(kind="ray", address=address)
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(timeout=30)
        shutil.rmtree(files, ignore_errors=True)


def _wait_for_nodes(address: str, number: int, environment: dict[str, str]) -> None:
    code = (
        "import ray, sys, time\n"
        "deadline = time.time() + 60\n"
        "while True:\n"
        "    try:\n"
        "        ray.init(address=sys.argv[1], logging_level='error')\n"
        "        break\n"
        "    except ConnectionError:\n"
        "        assert time.time() < deadline\n"
        "        time.sleep(0.5)\n"
        "while sum(node['Alive'] for node in ray.nodes()) < int(sys.argv[2]):\n"
        "    assert time.time() < deadline\n"
        "    time.sleep(0.2)\n"
    )
    subprocess.run([sys.executable, "-c", code, address, str(number)], check=True, timeout=90, env=environment)


def test_two_nodes_leave_the_same_bytes_as_one_process(tmp_path, sources, cluster):
    here = data_stages(tmp_path / "here", sources, None)
    assert data_stages(tmp_path / "cluster", sources, cluster) == here


def test_both_nodes_work_and_a_failure_keeps_its_words(cluster, tmp_path):
    with engine.using(cluster):
        found = engine.map_shards(which_node, [(number, tmp_path) for number in range(8)], "test")
        assert [number for number, _ in found] == list(range(8))
        assert len({node for _, node in found}) == 2
        with pytest.raises(AttuneError, match="shard 1 is bad"):
            engine.map_shards(fail, [(1,)], "test")
