"""The store in a bucket: a real S3 server in a process of its own, and machines that share nothing but the URL."""

import errno
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROWS, SIZES, write_jsonl
from fsspec.registry import _registry
from pydantic import ValidationError
from remote_store_process import MANY, URL
from store_process import CONTENT, KEYS, publish
from test_sources_remote import _wait_for as wait_for

from tasks import remote_store
from tasks.config import PipelineConfig
from tasks.config_file import load
from tasks.disk import digest_json
from tasks.errors import AttuneError, ConfigError
from tasks.gc import collect_garbage
from tasks.remote_store import RemoteStore
from tasks.run_record import RunRecord
from tasks.stages import STAGES
from tasks.store import ArtifactRef, ArtifactStore, Manifest, open_store, reference

PROCESS = Path(__file__).with_name("remote_store_process.py")
PREFIX = URL.removeprefix("s3://data/")
FIRST, SECOND = sorted(CONTENT)
CANARY = "canary-of-a-secret"

slow = pytest.mark.slow


@contextmanager
def process(verb: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command, pipe = [sys.executable, str(PROCESS), verb, *map(str, arguments)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server that holds nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
    with log, subprocess.Popen([sys.executable, str(PROCESS), "serve", str(port)], stdout=log, stderr=log) as server:
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials, and no connection that knows of others."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(endpoint: str, environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a fresh bucket named `data`, for which the environment names server and credentials."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    bucket = boto3.resource("s3").create_bucket(Bucket="data")
    yield bucket
    bucket.objects.delete()
    bucket.delete()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], RemoteStore]:
    """The store as a machine with a folder of its own sees it."""
    return lambda name: RemoteStore(URL, tmp_path / name)


def names_in(bucket: Any, prefix: str = "") -> list[str]:
    return sorted(each.key.removeprefix(f"{PREFIX}/") for each in bucket.objects.filter(Prefix=f"{PREFIX}/{prefix}"))


def object_of(bucket: Any, ending: str) -> Any:
    """The object of the artifact `key` whose name ends so."""
    return next(
        each.Object() for each in bucket.objects.filter(Prefix=f"{PREFIX}/clean/key/") if each.key.endswith(ending)
    )


def changed(ending: str, change: Callable[[bytes], bytes]) -> Callable[[Any], None]:
    """A damage to one object, behind the back of everyone who knows it."""

    def damage(bucket: Any) -> None:
        target = object_of(bucket, ending)
        target.put(Body=change(target.get()["Body"].read()))

    return damage


def gone(ending: str) -> Callable[[Any], None]:
    return lambda bucket: object_of(bucket, ending).delete()


def in_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    def edit(data: bytes) -> bytes:
        manifest = json.loads(data)
        change(manifest)
        return json.dumps(manifest).encode()

    return changed("manifest.json", edit)


def flip(data: bytes) -> bytes:
    return data[:7] + bytes([data[7] ^ 1]) + data[8:]


SEEN = {
    "manifest empty": changed("manifest.json", lambda _: b""),
    "manifest torn": changed("manifest.json", lambda data: data[: len(data) // 2]),
    "manifest of another shape": changed("manifest.json", lambda _: b"[]"),
    "manifest of another key": in_manifest(lambda manifest: manifest.update(key="other")),
    "manifest with another digest": in_manifest(lambda manifest: manifest.update(digest="0" * 64)),
    "manifest without one of its files": in_manifest(lambda manifest: manifest["files"].pop(0)),
    "file missing": gone(FIRST),
    "file empty": changed(FIRST, lambda _: b""),
    "file cut short": changed(SECOND, lambda data: data[:-1]),
    "file grown": changed(SECOND, lambda data: data + b"x"),
}
"""What a listing and the manifest show."""
UNSEEN = {"flipped bit": changed(FIRST, flip), "flipped bit in what no stage reads": changed(SECOND, flip)}
"""What only the bytes show."""


# Two machines


@slow
def test_what_one_machine_publishes_another_finds_and_reads(bucket, machine):
    here, there = machine("here"), machine("there")
    published = publish(here, "key")
    assert there.find("clean", "key") == published
    assert list(there.manifests()) == list(there.manifests("clean")) == [published]
    assert list(there.manifests("split")) == [] and there.find("clean", "other") is None
    assert there.folders() == [there.path(reference(published))]
    assert not there.path(reference(published)).exists()
    assert there.verify(reference(published)) and there.fetch(reference(published))
    folder = there.path(reference(published))
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert ArtifactStore(there.root).find("clean", "key") == published
    assert [(folder / entry.path).stat().st_mtime_ns for entry in published.files] == [
        entry.modified_ns for entry in published.files
    ]
    assert not there.is_quarantined("clean", "key")


@slow
def test_the_manifest_is_put_last(bucket, machine, requests):
    publish(machine("here"), "key")
    puts = [arguments["Key"] for name, arguments in requests if name == "put_object"]
    assert len(puts) == 3
    assert puts[-1] == f"{PREFIX}/clean/key/manifest.json"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every request to the bucket, as it is made."""
    from s3fs import S3FileSystem

    made: list[tuple[str, dict[str, Any]]] = []
    request = S3FileSystem._call_s3

    async def noted(self: S3FileSystem, method: str, *arguments: Any, **named: Any) -> Any:
        made.append((method, named))
        return await request(self, method, *arguments, **named)

    monkeypatch.setattr(S3FileSystem, "_call_s3", noted)
    return made


@slow
def test_what_is_known_costs_one_request_however_many_there_are(bucket, machine, requests):
    here, there = machine("here"), machine("there")
    for key in KEYS:
        publish(here, key)
    assert [manifest.key for manifest in there.manifests()] == KEYS
    requests.clear()
    assert there.find("clean", KEYS[0]) is not None
    assert [manifest.key for manifest in there.manifests()] == KEYS
    assert [name for name, _ in requests] == ["list_objects_v2", "list_objects_v2"]
    requests.clear()
    published = here.find("clean", KEYS[0])
    requests.clear()
    assert here.fetch(reference(published)) and here.verify(reference(published))
    assert requests == []


# Damage


@slow
@pytest.mark.parametrize("lookup", ["find", "verify"])
@pytest.mark.parametrize("damage", [*SEEN.values(), *UNSEEN.values()], ids=[*SEEN, *UNSEEN])
def test_damage_in_the_bucket_is_found_before_use_and_the_artifact_is_made_again(
    bucket, machine, caplog, damage, lookup, tmp_path
):
    published = publish(machine("here"), "key")
    damage(bucket)
    there = machine("there")
    with caplog.at_level(logging.WARNING, "attune"):
        found = there.find("clean", "key") if lookup == "find" else there.verify(reference(published))
    if lookup == "find" and damage in UNSEEN.values():
        assert found == published
        assert not there.verify(reference(published))
    else:
        assert not found
    assert f"{URL}/clean/key" in caplog.text and str(tmp_path) not in caplog.text
    assert not there.path(reference(published)).exists()
    assert there.is_quarantined("clean", "key")
    assert "clean/key/manifest.json" not in names_in(bucket)
    assert any(name.endswith("manifest.json") for name in names_in(bucket, ".quarantine/clean/key/"))
    assert publish(there, "key").digest == published.digest
    elsewhere = machine("elsewhere")
    assert elsewhere.verify(reference(published)) and list(elsewhere.audit()) == [True]


@slow
def test_without_its_manifest_an_artifact_is_not_there(bucket, machine):
    published = publish(machine("here"), "key")
    gone("manifest.json")(bucket)
    there = machine("there")
    assert there.find("clean", "key") is None and not there.verify(reference(published))
    assert there.folders() == list(there.manifests()) == []


@slow
def test_a_manifest_that_leads_out_of_its_folder_is_refused_though_all_its_objects_are_there(bucket, machine, tmp_path):
    publish(machine("here"), "key")
    manifest = json.loads(object_of(bucket, "manifest.json").get()["Body"].read())
    manifest["files"][1]["path"] = str(tmp_path / "out")
    files = [[entry["path"], entry["sha256"]] for entry in manifest["files"]]
    manifest["digest"] = digest_json(files)
    for (path, _), name in zip(files, (FIRST, SECOND), strict=True):
        bucket.put_object(Key=f"{PREFIX}/clean/key/{digest_json(files)[:32]}/{path}", Body=CONTENT[name])
    bucket.put_object(Key=f"{PREFIX}/clean/key/manifest.json", Body=json.dumps(manifest))
    assert not machine("there").verify(ArtifactRef("clean", "key", manifest["digest"]))
    assert not (tmp_path / "out").exists()


@slow
def test_a_machine_with_a_sound_copy_heals_the_bucket(bucket, machine):
    here, there = machine("here"), machine("there")
    published = publish(here, "key")
    gone(FIRST)(bucket)
    assert there.find("clean", "key") is None
    assert here.find("clean", "key") == published
    assert there.verify(reference(published))


@slow
def test_a_damaged_copy_is_fetched_again(bucket, machine, caplog):
    here = machine("here")
    published = publish(here, "key")
    path = here.path(reference(published)) / FIRST
    path.write_bytes(flip(path.read_bytes()))
    assert here.verify(reference(published))
    assert path.read_bytes() == CONTENT[FIRST]
    assert "was altered" in caplog.text
    assert not here.is_quarantined("clean", "key")


@slow
def test_a_damaged_copy_of_a_manifest_is_not_blamed_on_the_bucket(bucket, machine):
    publish(machine("here"), "key")
    there = machine("there")
    published = there.find("clean", "key")
    for kept in (there.root / ".manifests" / "clean").iterdir():
        kept.write_bytes(kept.read_bytes().replace(b'"size_bytes": ', b'"size_bytes": 1'))
    assert there.find("clean", "key") == published
    assert not there.is_quarantined("clean", "key")


@slow
def test_an_audit_reads_the_bucket_and_not_the_copies(bucket, machine):
    here = machine("here")
    published = publish(here, "key")
    publish(here, "other")
    changed(SECOND, flip)(bucket)
    assert here.verify(reference(published))
    assert list(here.audit()) == [False, True]
    assert not any(path.name.startswith("fetch") and path.is_dir() for path in (here.root / ".work").iterdir())


@slow
def test_what_was_replaced_meanwhile_is_not_set_aside(bucket, machine, monkeypatch):
    here, there = machine("here"), machine("there")
    publish(here, "key")
    changed("manifest.json", lambda _: b"{")(bucket)
    set_aside = RemoteStore._set_aside

    def after_another(store: RemoteStore, *arguments: Any) -> None:
        monkeypatch.setattr(RemoteStore, "_set_aside", set_aside)
        assert here.find("clean", "key") is not None  # sets it aside, and publishes its own
        set_aside(store, *arguments)

    monkeypatch.setattr(RemoteStore, "_set_aside", after_another)
    there.find("clean", "key")
    assert there.find("clean", "key") is not None


@slow
def test_foreign_objects_are_no_artifacts(bucket, machine):
    for name in ("README.md", "clean/manifest.json", "clean/../manifest.json", "a b/c/manifest.json"):
        bucket.put_object(Key=f"{PREFIX}/{name}", Body=b"{}")
    assert machine("here").folders() == list(machine("here").manifests()) == []


# Races and kills


@slow
def test_machines_that_publish_other_bytes_under_one_key_agree_on_one_artifact(bucket, tmp_path, machine):
    with ExitStack() as stack:
        racers = [stack.enter_context(process("race", tmp_path / str(own), own)) for own in range(6)]
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 6
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 6, said
    there = machine("there")
    manifests = list(there.manifests())
    assert [manifest.key for manifest in manifests] == KEYS
    assert [out.split() for out, _ in said] == [[manifest.digest for manifest in manifests]] * 6
    assert all(there.verify(reference(manifest)) for manifest in manifests)
    for own in range(6):
        assert all(RemoteStore(URL, tmp_path / str(own)).verify(reference(manifest)) for manifest in manifests)
    assert names_in(bucket, ".quarantine") == []


@slow
def test_who_comes_second_takes_what_stands(bucket, machine):
    here, there = machine("here"), machine("there")
    first = publish(here, "key")
    other = {name: data.upper() for name, data in CONTENT.items()}
    assert publish(there, "key", other) == first
    assert not there.path(reference(first)).exists()
    assert there.verify(reference(first))
    assert (there.path(reference(first)) / FIRST).read_bytes() == CONTENT[FIRST]


@slow
@pytest.mark.parametrize("lost", ["answer", "turn"])
def test_a_put_that_is_refused_is_looked_into(bucket, machine, monkeypatch, lost):
    """The answer to our own put was lost, or the bucket saw two at the same moment and took neither."""
    from s3fs import S3FileSystem

    pipe_file = S3FileSystem.pipe_file
    calls = []

    def refused(*arguments: Any, **named: Any) -> None:
        calls.append(named)
        if len(calls) == 1 or lost == "answer":
            if lost == "answer":
                pipe_file(*arguments, **named)
            raise OSError(errno.EBUSY, "conflict")
        pipe_file(*arguments, **named)

    monkeypatch.setattr(S3FileSystem, "pipe_file", refused)
    monkeypatch.setattr(remote_store.time, "sleep", lambda _: None)
    published = publish(machine("here"), "key")
    assert machine("there").verify(reference(published))
    assert [named["mode"] for named in calls] == ["create"] * (1 if lost == "answer" else 2)


@slow
def test_a_process_killed_at_any_request_leaves_all_or_nothing(bucket, machine, tmp_path):
    undisturbed = publish(machine("undisturbed"), "undisturbed", MANY)
    with process("sweep", tmp_path / "killed") as sweep:
        assert sweep.communicate() == ("", "")
        assert sweep.returncode == 0
    killed = (tmp_path / "killed").iterdir()
    outcomes = [after_the_kill(path, machine(f"other-{path.name}"), undisturbed) for path in killed]
    assert outcomes.count("nothing") > 20
    assert outcomes.count("all") > 4
    assert names_in(bucket, ".quarantine") == []


def after_the_kill(copies: Path, other: RemoteStore, undisturbed: Manifest) -> str:
    """What another machine sees then; and on the first one, nothing is done again."""
    key = f"key-{copies.name}"
    seen = other.find("clean", key)
    assert seen is None or other.verify(reference(seen))
    found = RemoteStore(URL, copies).find("clean", key)
    assert found is not None and found.digest == undisturbed.digest
    assert other.verify(reference(found))
    return "all" if seen else "nothing"


@slow
def test_only_copies_are_collected_and_fetched_again_when_they_are_needed(bucket, machine, tmp_path):
    here = machine("here")
    published = publish(here, "key")
    before = names_in(bucket)
    found = collect_garbage(here, tmp_path / "runs", 0, dry_run=False)
    assert [leftover.path for leftover in found] == [here.path(reference(published))]
    assert names_in(bucket) == before
    assert here.find("clean", "key") == published and here.fetch(reference(published))


# The whole pipeline


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path) -> Path:
    raw = {
        "name": "tiny",
        "model": {"base": str(tiny_base), "init": "scratch", "architecture": "llama", "sizes": SIZES["llama"]},
        "collect": {"sources": [{"path": str(write_jsonl(tmp_path / "colours.jsonl", ROWS))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"epochs": 1.0, "precision": "fp32", "scratch_control": False},
        "evaluate": {"max_new_tokens": 4},
        "export": {"parity_rows": 4},
        "store": URL,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "config.yaml"


def attune(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in a folder that stands for a machine."""
    home.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("attune")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=home, timeout=250, check=False)


def record_of(home: Path) -> RunRecord:
    return RunRecord.model_validate_json((home / "data" / "runs" / "latest" / "run.json").read_bytes())


@slow
@pytest.mark.timeout(900)
def test_what_one_machine_has_run_is_cached_on_another(bucket, config, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    ran = attune(here, "run", config)
    assert ran.returncode == 0, ran.stderr
    again = attune(there, "run", config)
    assert again.returncode == 0, again.stderr
    first, second = record_of(here), record_of(there)
    assert [stage.stage for stage in second.stages] == list(STAGES)
    assert all(stage.cached for stage in second.stages) and not any(stage.cached for stage in first.stages)
    assert [stage.ref for stage in second.stages] == [stage.ref for stage in first.stages]
    model = there / "data" / "runs" / "latest" / "model"
    assert (model / "model.safetensors").exists() and model.resolve().is_relative_to(there)
    copies = {path.parent.parent.name for path in (there / "data" / "cache").glob("*/[!.]*/*/manifest.json")}
    assert copies == {"fine_tune", "export"}
    assert CANARY not in ran.stdout + ran.stderr + again.stdout + again.stderr
    assert not [path for home in (here, there) for path in home.rglob("*.json") if CANARY in path.read_text()]

    cleared = attune(there, "gc", config, "--keep-days", "0")
    assert cleared.returncode == 0 and "2 removed" in cleared.stdout
    assert f"copies on this machine only: what {URL} keeps" in cleared.stdout
    checked = attune(there, "verify", config)
    assert "7 artifacts read, 7 sound, 0 damaged" in checked.stdout
    weights = next(each for each in bucket.objects.all() if each.key.endswith("huggingface/model.safetensors")).Object()
    weights.put(Body=flip(weights.get()["Body"].read()))
    checked = attune(there, "verify", config)
    assert checked.returncode == 1
    assert "7 artifacts read, 6 sound, 1 damaged" in checked.stdout

    elsewhere = tmp_path / "elsewhere"
    healed = attune(elsewhere, "run", config)
    assert healed.returncode == 0, healed.stderr
    assert [stage.stage for stage in record_of(elsewhere).stages if not stage.cached] == ["export"]
    assert record_of(elsewhere).stages[-1].ref == first.stages[-1].ref


@slow
def test_a_bucket_that_is_away_fails_the_run_plainly(environment, config, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for command in ("run", "check", "verify"):
        failed = attune(tmp_path / "here", command, config)
        assert failed.returncode == 1
        assert "attune: the store s3://data/team/store cannot be reached" in failed.stderr
        assert "Traceback" not in failed.stderr and CANARY not in failed.stdout + failed.stderr
    assert record_of(tmp_path / "here").state == "failed"


# What a user is told


@slow
def test_a_bucket_that_does_not_exist_is_told_in_one_line(bucket, tmp_path):
    store = RemoteStore("s3://no-such-bucket/store", tmp_path)
    with pytest.raises(AttuneError, match=r"the store s3://no-such-bucket/store cannot be reached: .*bucket"):
        store.find("clean", "key")
    with pytest.raises(AttuneError, match="cannot be reached"):
        publish(store, "key")


@slow
def test_what_was_made_while_the_bucket_was_away_is_published_later(bucket, machine, monkeypatch, endpoint):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(AttuneError, match="cannot be reached"):
        publish(machine("here"), "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    S3FileSystem.clear_instance_cache()
    assert machine("there").find("clean", "key") is None
    published = machine("here").find("clean", "key")
    assert machine("there").verify(reference(published))


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", ["closed", "silent", "secret", "broken"])
def test_a_server_that_is_away_or_silent_ends_in_a_plain_message(environment, monkeypatch, machine, server):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = {
            "closed": "127.0.0.1:1",
            "silent": f"127.0.0.1:{silent.getsockname()[1]}",
            "secret": f"127.0.0.1:1/?key={CANARY}",
            "broken": f"{CANARY}@[",
        }[server]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        with pytest.raises(AttuneError, match="the store s3://data/team/store cannot be reached") as told:
            machine("here").find("clean", "key")
    assert CANARY not in str(told.value) and "AWS_ENDPOINT_URL" in str(told.value)


@pytest.mark.parametrize(
    "store",
    [
        f"s3://someone:{CANARY}@data/store",
        f"s3://{CANARY}@data/store",
        f"s3://data/store?key={CANARY}",
        f"https://{CANARY}/store",
        f"s3://data/{CANARY}/../other",
        f"s3://data/{CANARY}*",
        f"s3://data//{CANARY}",
        "s3://",
    ],
)
def test_a_url_that_is_no_plain_bucket_is_refused_without_showing_it(tmp_path, store):
    raw = {"collect": {"sources": [{"path": "x"}]}, "store": store}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"store: is a folder or s3://bucket/prefix") as told:
        load(tmp_path / "config.yaml")
    assert CANARY not in str(told.value)
    with pytest.raises(ValidationError) as refused:
        PipelineConfig.model_validate(raw)
    assert CANARY not in str(refused.value)


def test_each_store_has_a_folder_of_its_own(tmp_path):
    def folder(store: str) -> Path:
        raw = {"collect": {"sources": [{"path": "x"}]}, "store": store, "cache": str(tmp_path)}
        return open_store(PipelineConfig.model_validate(raw)).root

    assert folder("data/artifacts") == Path("data/artifacts")
    urls = ["s3://data", "s3://data/a-b", "s3://data/a/b", "s3://data-a/b", "s3://data/A-b"]
    assert len({folder(url) for url in urls}) == len(urls)
    assert all(folder(url).parent == tmp_path for url in urls)
    assert folder("s3://data/a/") == folder("s3://data/a")


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"pip install 'attune\[s3\]'"):
        RemoteStore(URL, tmp_path).find("clean", "key")
