"""What docker/ says, held against the project: nothing here starts a container."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders
from prefect_server import ROOT, bin_path
from typer.main import get_command

from flows.cli import app
from flows.prefect_settings import DEFAULTS
from flows.services import HEARTBEAT_SECONDS

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TEMPLATE = json.loads((DOCKER / "kubernetes" / "gpu-base-job-template.json").read_text())
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("attune:")}
UID = 10001


def stages() -> dict[str, list[list[str]]]:
    """Stage of the Dockerfile -> its instructions, as words; that of a stage it stands on are its own too."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.M))
    found: dict[str, list[list[str]]] = {}
    for words in (line.split() for line in text.splitlines() if line.strip()):
        if words[0] == "FROM":
            name = words[3]
            found[name] = [*found.get(words[1], []), words]
        else:
            found[name].append(words)
    return found


def copied(stage: str) -> list[tuple[list[str], str]]:
    """What a stage copies from the project: sources and destination."""
    lines = [words[1:] for words in stages()[stage] if words[0] == "COPY" and not words[1].startswith("--from")]
    return [(line[:-1], line[-1]) for line in lines]


def build(stage: str, folder: Path) -> Path:
    """The files that a stage has of the project."""
    for sources, target in copied(stage):
        for source in sources:
            place = folder / target / (Path(source).name if target.endswith("/") else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / source, place)
    return folder


def values(service: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def pod() -> dict[str, Any]:
    """The pod of a training, the template's variables at their defaults."""
    defaults = {
        name: each["default"] for name, each in TEMPLATE["variables"]["properties"].items() if "default" in each
    }
    return apply_values(TEMPLATE["job_configuration"]["job_manifest"], defaults)["spec"]["template"]["spec"]


@pytest.mark.slow
def test_an_image_holds_all_that_a_run_reads(tmp_path):
    assert copied("cpu") == copied("cuda")
    env = os.environ | {"PYTHONPATH": str(build("cpu", tmp_path)), "PREFECT_HOME": str(tmp_path / "data" / "prefect")}
    command = [sys.executable, "-m", "flows.cli", "check", "configs/quickstart.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    code = "import flows, flows.deploy as it; print(flows.__file__); print(*it.read_configs())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    where, names = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path), "another attune was asked"
    assert set(names.split()) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert (tmp_path / "prefect.yaml").exists()


def test_what_is_copied_is_in_the_build_context_and_little_else_is():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    for stage in stages():
        for source in [source for sources, _ in copied(stage) for source in sources]:
            assert (ROOT / source).exists(), source
            assert source in kept and source.partition("/")[0] in kept, f"{source} is not in the build context"
    assert "*" in ignored and "data/*" in ignored
    assert not kept & {"data/artifacts", "data/runs", "data/prefect", ".git", "tests"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_not_root_and_installs_what_was_tested(target):
    image, built = stages()[target], [" ".join(words) for words in stages()[f"build-{target}"]]
    assert [words[1] for words in image if words[0] == "USER"][-1] == f"{UID}:{UID}"
    assert f"--uid {UID}" in " ".join(" ".join(words) for words in image)
    installs = [part for line in built for part in line.split("&&") if "pip install" in part]
    assert installs and all("--constraint constraints.txt" in part for part in installs)
    assert ["COPY", f"--from=build-{target}", "/opt/venv", "/opt/venv"] in image
    assert [words[-1] for words in image if words[0] == "ENTRYPOINT"] == ['"attune"]']


def test_every_image_is_pinned():
    bases = {words[1] for lines in stages().values() for words in lines if words[0] == "FROM"} - set(stages())
    others = {service["image"] for service in SERVICES.values()} - {service["image"] for service in OURS.values()}
    assert bases and others
    for image in bases | others:
        assert re.search(r":.*\d+[.-]\d+", image) and "latest" not in image, image
    built = {f"attune:{service['build']['target']}" for service in OURS.values() if "build" in service}
    assert {service["image"] for service in OURS.values()} == built == {"attune:cpu", "attune:cuda"}


@pytest.mark.parametrize("name", OURS)
def test_every_service_of_ours_is_a_command_of_attune(name):
    command, *options = SERVICES[name]["command"]
    get_command(app).commands[command].make_context(command, options)  # raises on what it does not know


def test_the_server_is_reached_from_this_host_only_and_asks_for_a_password():
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"server": ["127.0.0.1:4200:4200"]}
    assert "PREFECT_SERVER_API_AUTH_STRING" in values(SERVICES["server"])
    for name in set(OURS) - {"server"}:
        assert (
            values(SERVICES[name])["PREFECT_API_AUTH_STRING"]
            == values(SERVICES["server"])["PREFECT_SERVER_API_AUTH_STRING"]
        )


def test_no_password_stands_in_a_file_and_none_may_be_left_out():
    for service in SERVICES.values():
        for name, value in values(service).items():
            if re.search("PASSWORD|SECRET|AUTH|DATABASE", name):
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", value), name
                assert not re.search(r":-[^}]", value), f"{name} has a default"
    for path in [path for path in DOCKER.rglob("*") if path.is_file()]:
        assert not re.search(r"ENV.*(PASSWORD|SECRET|TOKEN)|ARG.*(PASSWORD|SECRET|TOKEN)", path.read_text()), path


def test_services_wait_for_what_they_need_and_come_back():
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for {needed} for ever"
            else:
                assert SERVICES[needed]["restart"] == "no", f"{needed} never ends"
        if service["restart"] != "no":
            assert service["stop_grace_period"] == "30s", name
    for name in OURS:
        assert SERVICES[name]["cap_drop"] == ["ALL"] and "no-new-privileges:true" in SERVICES[name]["security_opt"]
    (device,) = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["count"] == 1
    named = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert named == set(COMPOSE["volumes"])


def test_every_variable_of_the_job_template_is_declared_and_used():
    used = {placeholder.name for placeholder in find_placeholders(TEMPLATE["job_configuration"])}
    assert used == set(TEMPLATE["variables"]["properties"])


def test_a_training_in_kubernetes_has_limits_and_no_more_rights_than_it_needs():
    (container,) = pod()["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1 and limits["memory"] and limits["cpu"]
    assert container["resources"]["requests"] == limits
    assert pod()["terminationGracePeriodSeconds"] == 30 and pod()["automountServiceAccountToken"] is False
    assert pod()["securityContext"]["runAsNonRoot"] and pod()["securityContext"]["runAsUser"] == UID
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["envFrom"] == [{"secretRef": {"name": "attune"}}]
    assert container["command"] == ["tini", "--"], "the image's entry point is attune, the job's is Prefect"


def test_a_training_in_kubernetes_has_the_settings_of_an_attune_worker():
    """Without the heartbeats of every 30 s it would be taken for crashed while it trains."""
    server_only = {
        "PREFECT_HOME",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS",
    }
    needed = {name: value for name, value in DEFAULTS.items() if name not in server_only}
    needed |= {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS), "PREFECT_HOME": "/work/data/prefect"}
    assert TEMPLATE["variables"]["properties"]["env"]["default"] == needed


@pytest.mark.slow
def test_hadolint_has_nothing_to_say():
    done = subprocess.run([bin_path("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.slow
def test_the_compose_file_follows_its_schema():
    command = [bin_path("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
