"""Sources behind a network, each a real server in a process of its own on this machine: an S3 store, and a Hub."""

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.config import SourceConfig
from tasks.errors import SourceError
from tasks.sources import digest, files, read_rows

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Say {number}.", "output": "é" * number} for number in range(1, 201)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server that holds nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of a fresh bucket named `data`, for which the environment names server and credentials."""
    import boto3
    from s3fs import S3FileSystem

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    resource = boto3.resource("s3", endpoint_url=endpoint)
    bucket = resource.create_bucket(Bucket="data")
    yield bucket
    bucket.objects.delete()
    bucket.delete()
    S3FileSystem.clear_instance_cache()


def source(path: str) -> SourceConfig:
    return SourceConfig(path=path)


def names_of(path: str) -> list[str]:
    return [file.name for file in files(source(path))]


def values_of(path: str) -> list[dict]:
    rows = [row for file in files(source(path)) for row in read_rows(source(path), file, 10_000)]
    assert not [row.reason for row in rows if row.reason]
    return [row.value for row in rows]


def test_a_bucket_is_read_as_file_folder_and_glob(bucket):
    bucket.put_object(Key="day/1/a.jsonl", Body=LINES)
    bucket.put_object(Key="day/1/b.jsonl.gz", Body=gzip.compress(LINES))
    bucket.put_object(Key="day/2/c.parquet", Body=parquet())
    bucket.put_object(Key="day/2/_temporary/d.jsonl", Body=b"{")
    bucket.put_object(Key="day/2/", Body=b"")
    bucket.put_object(Key="day/README.md", Body=b"x")
    for path, names in {
        "s3://data/day/1/a.jsonl": ["a.jsonl"],
        "s3://data/day/1/b.jsonl.gz": ["b.jsonl.gz"],
        "s3://data/day/2/c.parquet": ["c.parquet"],
        "s3://data/day/1": ["a.jsonl", "b.jsonl.gz"],
        "s3://data/day/": ["1/a.jsonl", "1/b.jsonl.gz", "2/c.parquet"],
        "s3://data": ["day/1/a.jsonl", "day/1/b.jsonl.gz", "day/2/c.parquet"],
        "s3://data/day/*/*.jsonl": ["1/a.jsonl"],
        "s3://data/day/**/*.gz": ["1/b.jsonl.gz"],
        "s3://data/day/[12]": ["1/a.jsonl", "1/b.jsonl.gz", "2/c.parquet"],
    }.items():
        assert names_of(path) == names
        assert values_of(path) == ROWS * len(names)
    assert files(source("s3://data/day/1/a.jsonl"))[0].size_bytes == len(LINES)


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def test_the_digest_follows_the_objects_in_a_process_that_lives_on(bucket, monkeypatch):
    """A service that runs every night must not trust last night's listing, nor fetch what has not changed."""
    monkeypatch.setattr("tasks.sources.remote._content_digest", None)
    bucket.put_object(Key="day/a.jsonl", Body=LINES)
    bucket.put_object(Key="day/b.jsonl", Body=LINES)
    whole, one = source("s3://data/day"), source("s3://data/day/a.jsonl")
    digests = [digest(whole)]
    first = digest(one)
    bucket.put_object(Key="day/a.jsonl", Body=LINES)
    bucket.put_object(Key="day/note.md", Body=b"not read")
    assert (digest(whole), digest(one)) == (digests[0], first)
    bucket.put_object(Key="day/a.jsonl", Body=LINES[::-1])
    assert digest(one) != first
    digests.append(digest(whole))
    bucket.put_object(Key="day/c.jsonl", Body=LINES)
    digests.append(digest(whole))
    bucket.Object("day/b.jsonl").delete()
    digests.append(digest(whole))
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("s3://data/missing.jsonl", "source s3://data/missing.jsonl: there is no such file or folder"),
        ("s3://no-such-bucket/a.jsonl", "source s3://no-such-bucket/a.jsonl: there is no such file or folder"),
        ("s3://data/day/*.csv", "known endings"),
        ("s3://data/cut.jsonl.gz", "source s3://data/cut.jsonl.gz: its gzip data is damaged or ends early"),
    ],
)
def test_what_is_missing_or_damaged_is_named_without_secrets(bucket, path, says):
    bucket.put_object(Key="cut.jsonl.gz", Body=gzip.compress(LINES)[:-20])
    with pytest.raises(SourceError) as refusal:
        values_of(path)
    assert says in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_a_store_that_does_not_answer_is_a_plain_message(bucket, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(SourceError, match=r"source s3://data/a\.jsonl: cannot be read: "):
        digest(source("s3://data/a.jsonl"))


CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: [data/train-0.jsonl, data/train-1.jsonl]
  - split: test
    path: data/test.jsonl
- config_name: broken
  data_files: data/broken.jsonl
---
"""
COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as streaming a dataset asks for; its `server` has `files` and `commit`."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/datasets/owner/name/resolve/"):
            self._content(path.split("/", 6)[6])
        elif path.startswith("/api/datasets/owner/name/tree/"):
            self._json(self._listing("/".join(path.split("/")[7:])))
        elif path.startswith("/api/datasets/owner/name"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json(
                {"id": "owner/name", "sha": self.server.commit, "siblings": siblings, "tags": [], "private": False}
            )
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def _listing(self, folder: str) -> list[dict]:
        inside = [name for name in self.server.files if name.startswith(folder)]
        files = [name for name in inside if os.path.dirname(name) == folder]
        folders = {os.path.dirname(name) for name in inside} - {folder}
        entries = [{"type": "file", "path": name, "size": len(self.server.files[name])} for name in files]
        return [entry | {"oid": "2" * 40} for entry in entries + [{"type": "directory", "path": f} for f in folders]]

    def _content(self, name: str) -> None:
        if name not in self.server.files:
            return self._missing("EntryNotFound")
        body, status = self.server.files[name], 200
        headers = {"ETag": f'"{zlib.crc32(body)}"', "X-Repo-Commit": self.server.commit}
        if asked := self.headers.get("Range"):
            first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"], status = f"bytes {first}-{last}/{len(body)}", 206
            body = body[first : last + 1]
        return self._send(status, body, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.commit = COMMIT
    server.files = {
        "README.md": CARD.encode(),
        "data/train-0.jsonl": LINES,
        "data/train-1.jsonl": LINES,
        "data/test.jsonl": LINES[: LINES.index(b"\n")],
        "data/broken.jsonl": LINES + b"{broken",
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask_hub(hub: ThreadingHTTPServer, home: Path, **dataset: str) -> dict:
    """What `tasks.sources` says of a dataset, asked in a process of its own: the Hub's address is read at import."""
    code = f"""
import json
from tasks.config import HubDataset, SourceConfig
from tasks.errors import SourceError
from tasks.sources import digest, files, read_rows
source = SourceConfig(hub=HubDataset(**{ ({"dataset": "owner/name"} | dataset)!r}))
try:
    [file] = files(source)
    rows = list(read_rows(source, file, 10_000))
    print(json.dumps([digest(source), file.name, file.place, [row.line for row in rows], [row.value for row in rows]]))
except SourceError as error:
    print(json.dumps(str(error)))
"""
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_dataset_is_streamed_by_configuration_split_and_revision(hub, tmp_path):
    digest, name, place, lines, values = ask_hub(hub, tmp_path)
    assert (name, place, lines) == ("train", COMMIT, list(range(1, 401)))
    assert values == ROWS * 2
    assert ask_hub(hub, tmp_path)[0] == digest
    split = ask_hub(hub, tmp_path, config="main", split="test", revision=COMMIT)
    assert (split[1], split[4]) == ("test", ROWS[:1])
    hub.commit, hub.files = "3" * 40, {"data/train.parquet": parquet()}
    table = ask_hub(hub, tmp_path)
    assert table[4] == ROWS
    assert len({digest, split[0], table[0]}) == 3


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ({"dataset": "owner/missing"}, "source owner/missing on the Hugging Face Hub: cannot be read: "),
        ({"config": "nonsense"}, "nonsense"),
        ({"split": "nonsense"}, "nonsense"),
        ({"config": "broken"}, "cannot be read: "),
    ],
)
def test_a_hub_dataset_that_cannot_be_read_is_a_plain_message(hub, tmp_path, dataset, says):
    assert says in ask_hub(hub, tmp_path, **dataset)


def test_code_of_a_hub_dataset_is_never_run(hub, tmp_path):
    trace = tmp_path / "was_here"
    hub.files = {"name.py": f"open({str(trace)!r}, 'w')".encode(), "data/train.jsonl": LINES}
    assert "scripts are no longer supported" in ask_hub(hub, tmp_path)
    assert not trace.exists()
