"""A process that works on a store in a bucket, for the tests to race and to kill: `remote_store_process.py <verb> …`.

`serve <port>` is the S3 server itself: moto's, with the one promise that it does not keep by itself, that a put with
If-None-Match is a single step.
"""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from store_process import KEYS, barrier, publish

URL = "s3://data/team/store"
MANY = {f"examples/part-{number:05d}.parquet": bytes([number]) * 100 for number in range(10)}


def serve(port: str) -> None:
    """An S3 server on loopback that holds nothing."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app, one_by_one = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def served(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return app(environ, start_response)
        with one_by_one:
            return app(environ, start_response)

    run_simple("127.0.0.1", int(port), served, threaded=True)


def race(copies: str, own: str) -> None:
    """Publish every key with bytes of this process's own, together with the other racers."""
    from tasks.remote_store import RemoteStore

    store = RemoteStore(URL, Path(copies))
    store.find("clean", "nothing")
    barrier()
    for key in KEYS:
        print(publish(store, key, {"examples/part-00000.parquet": own.encode() * 50}).digest)


def sweep(copies: str) -> None:
    """Publish in the bucket, killed around the n-th request, each time under a key of its own, until one lives."""
    import s3fs  # noqa: F401  (before the forks: it takes a second)

    for number in itertools.count():
        if (child := os.fork()) == 0:
            publish_and_die(Path(copies) / str(number), f"key-{number}", number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        if status != -signal.SIGKILL:
            sys.exit(f"moment {number}: ended with {status}")


def publish_and_die(copies: Path, key: str, moment: int) -> None:
    """Publish, killed just before or just after a request to the bucket: the `moment`-th such time."""
    from s3fs import S3FileSystem

    from tasks.remote_store import RemoteStore

    moments, request = itertools.count(), S3FileSystem._call_s3

    def die() -> None:
        if next(moments) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    async def deadly(*arguments: Any, **named: Any) -> Any:
        die()
        answer = await request(*arguments, **named)
        die()
        return answer

    S3FileSystem._call_s3 = deadly
    publish(RemoteStore(URL, copies), key, MANY)
    os._exit(0)


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"serve": serve, "race": race, "sweep": sweep}[verb](*rest)
