"""A real server, what `attune deploy` registers there, and workers that are killed."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from deployed_site import Site, changed, config_of, deployed_site, until
from faults import workers
from faults.workers import SILENT_SECONDS
from prefect_server import ROOT, free_port, running

from tasks.config_file import load
from tasks.stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with deployed_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def config(site: Site) -> dict[str, Any]:
    return config_of(site)


def registered(site: Site) -> tuple[dict[str, Any], ...]:
    deployments = site.ask("POST", "/deployments/filter")
    automations = site.ask("POST", "/automations/filter")
    pools = site.ask("POST", "/work_pools/filter")
    known = ("id", "parameters", "entrypoint", "work_pool_name", "concurrency_limit", "parameter_openapi_schema")
    return (
        {each["name"]: {name: each.get(name) for name in known} for each in deployments},
        {each["name"]: {name: value for name, value in each.items() if name != "updated"} for each in automations},
        {each["name"]: (each["id"], each["type"], each["concurrency_limit"]) for each in pools},
    )


def test_deploying_again_changes_nothing(site):
    before = registered(site)
    done = site.attune("caller", "deploy", cwd=ROOT)
    assert done.returncode == 0 and "/deployments" in done.stdout
    assert registered(site) == before


def test_each_preset_is_a_deployment_with_its_full_config_in_the_form(site):
    deployments, automations, pools = registered(site)
    for path in (ROOT / "configs").glob("*.yaml"):
        name = "pipeline" if path.stem == "quickstart" else path.stem
        assert deployments[name]["parameters"]["config"] == load(path).model_dump(mode="json"), name
    assert {deployments[name]["work_pool_name"] for name in ("fine-tune", "sweep")} == {"gpu"}
    assert pools["gpu"][1:] == ("process", 1) and pools["cpu"][1:] == ("process", None)
    assert set(automations) == {"attune: crashed", "attune: never began", "attune: restart"}
    nightly = site.ask("GET", "/deployments/name/pipeline/nightly")
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert nightly["global_concurrency_limit"]["limit"] == 1 and nightly["schedules"][0]["active"]


def test_a_value_out_of_bounds_is_refused_when_a_run_is_asked_for(site, config):
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        site.start("pipeline/pipeline", changed(config, learning_rate=7.0))


def test_a_killed_gpu_worker_costs_only_the_steps_since_the_last_save(site, config):
    site.start_worker("cpu", "caller")
    site.start_worker("gpu", "one")
    workers.kill_gpu_worker(site, config)
    child = site.runs_of("fine-tune")[0]
    assert "gpu: tuned: goes on from checkpoint-" in site.log("cpu", "caller").read_text()
    assert len(json.dumps(child["parameters"])) < 16_000, "only references go through the API"


def test_a_killed_run_is_found_dead_when_a_worker_starts_and_begins_again(site, config):
    assert workers.kill_worker_and_start_it(site, config) < SILENT_SECONDS, "found before a heartbeat is missed"


def test_a_run_that_may_not_be_restarted_stays_crashed(site, config):
    run = site.start("pipeline/pipeline", changed(config, seed=3, max_restarts=0))
    until(lambda: site.run(run)["state_type"] == "RUNNING", 60, lambda: site.told(run))
    time.sleep(5)
    os.kill(int(site.run(run)["infrastructure_pid"]), signal.SIGKILL)
    until(lambda: site.run(run)["state_type"] == "CRASHED", 30, lambda: site.told(run))
    (restart,) = until(lambda: [r for r in site.runs_of("restart") if r["parameters"]["flow_run_id"] == run], 60)
    assert "crashed 1 times; max_restarts is 0" in site.ended(restart["id"])["state"]["message"]
    assert site.run(run)["state_type"] == "CRASHED"


def test_a_run_that_nobody_hears_of_has_crashed_and_frees_the_gpu(site, config):
    workers.kill_gpu_worker_and_run(site, config)
    (pool,) = [pool for pool in site.ask("POST", "/work_pools/filter") if pool["name"] == "gpu"]
    running = site.ask("POST", "/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})
    assert not [run for run in running if run["work_pool_name"] == pool["name"]]


def test_a_cancelled_pipeline_cancels_its_training(site, config):
    site.start_worker("gpu", "one")
    run = site.start("pipeline/pipeline", changed(config, runs_on="gpu", seed=5))
    child = until(lambda: [r for r in site.runs_of("fine-tune") if r["state_type"] == "RUNNING"], 120)[0]
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    site.ask("POST", f"/flow_runs/{run}/set_state", **cancelling)
    assert site.ended(run)["state_type"] == "CANCELLED", site.told(run)
    assert site.ended(child["id"])["state_type"] == "CANCELLED", site.told(child["id"])


@pytest.fixture
def bucket(site: Site) -> Iterator[str]:
    """The URL of a store on a real S3 server; the machines know the server from their environment."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    known = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with running(command, site.folder / "s3" / "moto.log", dict(os.environ)):
        endpoint = f"http://127.0.0.1:{port}"
        until(lambda: answers(endpoint), 60)
        boto3.client("s3", endpoint_url=endpoint, **renamed(known)).create_bucket(Bucket="models")
        site.variables = known | {"AWS_ENDPOINT_URL": endpoint}
        yield "s3://models/nightly"
        site.variables = {}


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code < 500
    except httpx.TransportError:
        return False


def renamed(known: dict[str, str]) -> dict[str, str]:
    """The variables as boto3 calls them."""
    return {name.lower().replace("aws_default_region", "region_name"): value for name, value in known.items()}


def test_caller_and_gpu_worker_share_nothing_but_the_api_and_a_bucket(site, config, bucket):
    if "gpu" in site.workers:
        site.kill("gpu")
    site.start_worker("gpu", "two")
    path = site.folder / "one" / "config.yaml"
    path.write_text(yaml.safe_dump(changed(config, store=bucket, runs_on="gpu", max_steps=30)))
    done = site.attune("one", "run", "config.yaml")
    assert done.returncode == 0, done.stderr + site.log("gpu", "two").read_text()
    assert "gpu: tuned: from the base model" in done.stderr
    made = json.loads((site.folder / "one/data/runs/latest/run.json").read_text())
    assert (site.folder / "one/data/runs/latest/model/model.safetensors").exists()
    trained = next(stage for stage in made["stages"] if stage["stage"] == "fine_tune")
    assert list((site.folder / "two/data/cache").rglob(trained["key"])), "it was made on the other machine"
    assert not list((site.folder / "two").rglob("collect/*")), "which saw nothing but what training reads"
    again = site.attune("one", "run", "config.yaml")
    assert again.returncode == 0 and again.stdout.count(": cached ") == len(STAGES)
