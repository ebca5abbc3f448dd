"""The Prefect server is not there, goes away, comes back, hangs; the temporary one; secrets; who hears of a failure."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import prefect_server
import pytest
import yaml
from faults import server as outage
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from flows import connection
from flows.connection import ServerGoneError
from flows.secrets import load_secrets
from tasks.config import CollectConfig, PipelineConfig, SourceConfig

IMPATIENT = "4,4,1"
"""How long a run waits for its server, how much longer Prefect may try, and how often it looks; seconds."""


@contextmanager
def api_at(port: int) -> Iterator[str]:
    """Inside, the environment's Prefect API is at a port of this machine."""
    url = f"http://127.0.0.1:{port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        yield url


@contextmanager
def healthy(port: int) -> Iterator[None]:
    """Inside, something at `port` answers every request with 200."""

    class Yes(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", port), Yes) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield
        answering.shutdown()


def test_where_nobody_listens_the_message_names_the_place_and_the_way_without():
    with api_at(prefect_server.free_port()) as url, pytest.raises(ServerGoneError) as told:
        connection.require_server()
    assert url in str(told.value) and "refused" in str(told.value) and "make pipeline" in str(told.value)


@pytest.mark.timeout(20)
def test_a_host_that_takes_the_connection_and_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(connection, "KNOCK_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        api_at(silent.getsockname()[1]),
        pytest.raises(ServerGoneError, match="no answer within"),
    ):
        connection.require_server()


def test_what_answers_but_is_no_prefect_server_is_said():
    class No(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), No) as other, api_at(other.server_port):
        threading.Thread(target=other.handle_request, daemon=True).start()
        with pytest.raises(ServerGoneError, match="HTTP 404"):
            connection.require_server()


def test_without_a_configured_server_the_commands_that_need_one_say_how_to_get_it():
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        with pytest.raises(ServerGoneError, match="make server"):
            connection.require_server()
        connection.wait_for_server()  # a stage that is called without a server is not held up


def test_between_two_stages_a_run_waits_for_its_server_and_goes_on(monkeypatch):
    port, told, came = prefect_server.free_port(), threading.Event(), threading.Event()
    monkeypatch.setattr(connection.log, "warning", lambda *_: told.set())

    def come_back():
        told.wait(30)
        with healthy(port):
            came.wait(30)

    thread = threading.Thread(target=come_back)
    thread.start()
    with api_at(port):
        connection.wait_for_server()
    came.set()
    thread.join()
    assert told.is_set(), "it was missed, and waited for"


@pytest.mark.timeout(30)
def test_a_server_that_does_not_come_back_ends_the_run_with_what_was_done_kept(monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.1)
    with api_at(prefect_server.free_port()), pytest.raises(ServerGoneError, match="What was done is kept"):
        connection.wait_for_server()


HANGS = """
import os, sys, threading, time
from flows import connection
connection.PATIENCE_SECONDS, connection.END_SECONDS, connection.LOOK_SECONDS = 0.2, 0.2, 0.1
threading.Thread(target=connection._end_when_gone, args=(os.environ["PREFECT_API_URL"],), daemon=True).start()
with connection.at_work():
    time.sleep(4)
    print("worked", flush=True)
time.sleep(600)
"""


def test_a_process_that_has_only_its_gone_server_to_tell_is_ended_but_not_while_it_works(tmp_path):
    env = prefect_server.environment(tmp_path, f"http://127.0.0.1:{prefect_server.free_port()}/api")
    ended = subprocess.run([sys.executable, "-c", HANGS], env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "worked" in ended.stdout
    assert ended.stderr.startswith("attune: the Prefect server at") and "What was done is kept" in ended.stderr


def config_with(**settings: object) -> PipelineConfig:
    return PipelineConfig(collect=CollectConfig(sources=[SourceConfig(path="x.jsonl")]), **settings)


def test_a_secret_is_given_by_name_and_one_that_was_written_down_is_not_repeated():
    assert config_with(secrets={"HF_TOKEN": "hub-token"}).secrets == {"HF_TOKEN": "hub-token"}
    for secret in ("hf_AbCdEf", "AKIA1234", "with space", ""):
        with pytest.raises(ValidationError, match="name of a Secret block") as refused:
            config_with(secrets={"HF_TOKEN": secret})
        assert not secret or secret not in str(refused.value)
    with pytest.raises(ValidationError, match="environment variable"):
        config_with(secrets={"HF TOKEN": "hub-token"})


def test_a_variable_that_is_set_needs_no_block_and_no_server(monkeypatch):
    monkeypatch.setenv("ATTUNE_TEST", "mine")
    load_secrets({"ATTUNE_TEST": "nobody-has-this"})
    assert os.environ["ATTUNE_TEST"] == "mine"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose stages before fine_tune are in its store."""
    return outage.prepared(tmp_path_factory.mktemp("made"))


@pytest.fixture
def config(made: Path, tmp_path: Path) -> Path:
    """The same with a store of its own."""
    return outage.copied(made, tmp_path)


@pytest.mark.slow
def test_a_run_whose_server_is_not_there_says_so_and_starts_nothing(config, tmp_path):
    outage.nobody_listens(tmp_path, config)


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_loses_nothing(config, tmp_path):
    outage.is_restarted(tmp_path, config, away=2)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_stays_away_or_hangs_ends_the_run_with_its_artifacts_kept(how, config, tmp_path):
    outage.is_gone(tmp_path, config, how, IMPATIENT)


@pytest.mark.slow
def test_a_locked_database_is_waited_for(config, tmp_path):
    outage.is_locked(tmp_path, config, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "attune: interrupted"), (signal.SIGTERM, 75, "which is saved"), (signal.SIGKILL, -9, "")],
)
def test_the_temporary_server_ends_with_its_run_and_not_before(number, code, says, config, tmp_path):
    command = outage.Command(tmp_path, config, "fine_tune.epochs=40", env={"PREFECT_HOME": str(tmp_path / "own")})
    command.until(outage.TRAINS)
    (server,) = temporary_servers(command.process.pid)
    os.killpg(command.process.pid, number)  # as a terminal does; the server is not of this group
    assert command.ended(60) == code
    assert says in command.text and "Traceback" not in command.text and "ERROR" not in command.text
    assert outage.record(config)["state"] == ("running" if number == signal.SIGKILL else "failed")
    end = time.monotonic() + 20
    while Path(f"/proc/{server}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{server}").exists()


def temporary_servers(parent: int) -> list[int]:
    """The temporary servers among the children of a process."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"flows.temporary_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Told(http.server.BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    bodies: list[str] = []  # noqa: RUF012

    def do_POST(self):
        Told.bodies.append(self.rfile.read(int(self.headers["content-length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


NOTIFY = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows.notify import notification_automation
told = {"text": "{{subject}} // {{body}}"}
CustomWebhookNotificationBlock(name="here", url=sys.argv[1], json_data=told).save("here", _sync=True)
notification_automation("custom-webhook/here").create()
"""


@pytest.mark.slow
def test_a_failed_run_is_told_once_on_the_terminal_and_once_through_a_notification_block(config, tmp_path):
    nothing_left = {"clean": {"filters": [{"name": "too_short", "params": {"min_output_chars": 999}}]}}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | nothing_left))
    with http.server.HTTPServer(("127.0.0.1", 0), Told) as listener, outage.serving(tmp_path / "server") as server:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        env = outage.at(server.url, tmp_path)
        address = f"http://127.0.0.1:{listener.server_port}/"
        notifier = prefect_server.environment(tmp_path, server.url)
        subprocess.run([sys.executable, "-c", NOTIFY, address], env=notifier, check=True)
        command = outage.Command(tmp_path, config, env=env)
        assert command.ended() == 1, command.text
        message = outage.record(config)["error"]
        assert message and command.text.count(message) == 1, command.text
        end = time.monotonic() + 30
        while not Told.bodies and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(3)  # a second one would come as soon
        listener.shutdown()
        assert server.states()[0] == "FAILED"
    (body,) = Told.bodies
    text = json.loads(body)["text"]
    assert "pipeline tiny" in text and "config tiny" in text and "Failed" in text and message in text
    assert f"{server.url.removesuffix('/api')}/" in text


@pytest.mark.slow
def test_a_secret_stands_in_no_file_of_a_run_its_store_and_its_server(config, tmp_path):
    outage.keeps_secrets(tmp_path, config)
    (tmp_path / "known.txt").write_text(f"x{outage.CANARY}x")
    assert outage.seen(outage.CANARY, [tmp_path]) == [str(tmp_path / "known.txt")]


@pytest.mark.slow
def test_a_secret_block_that_is_missing_is_named(config, tmp_path):
    env = {"PREFECT_HOME": str(tmp_path / "own")}
    command = outage.Command(tmp_path, config, "secrets.HF_TOKEN=hub-token", env=env)
    assert command.ended() == 2
    assert "secrets.HF_TOKEN: there is no Secret block 'hub-token'" in command.text and "Traceback" not in command.text
