"""What the tests of the engine map over shards: importable by a worker process and by another node."""

import os
import signal
import time
from pathlib import Path

from tasks import engine
from tasks.config import CleanConfig, CollectConfig, EngineConfig, SourceConfig, SplitConfig
from tasks.disk import digest_file
from tasks.errors import AttuneError


def data_stages(folder: Path, sources: Path, config: EngineConfig | None) -> dict[str, str]:
    """Run collect, clean and split; digests of all files that they leave, by path."""
    from tasks.clean import clean
    from tasks.collect import collect
    from tasks.split import split

    read = CollectConfig(sources=[SourceConfig(path=str(sources / "*.jsonl"), name="all")], max_per_task=500)
    inputs = {name: folder / name for name in ("collect", "clean")}

    def run() -> None:
        for function, section in ((collect, read), (clean, CleanConfig()), (split, SplitConfig(test=0.2))):
            (folder / function.__name__).mkdir(parents=True)
            function(section, inputs, folder / function.__name__)

    if config is None:
        run()
    else:
        with engine.using(config):
            run()
    return {str(path.relative_to(folder)): digest_file(path) for path in sorted(folder.rglob("*.parquet"))}


def which_process(number: int) -> tuple[int, int]:
    time.sleep(0.2)
    return number, os.getpid()


def kill(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise AttuneError(f"shard {number} is bad")


def which_node(number: int, folder: Path) -> tuple[int, str]:
    """The node that works on this shard, once another node works on one as well."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder / node).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return number, node
