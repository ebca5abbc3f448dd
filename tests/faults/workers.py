"""Workers and runs that are killed while a model is trained."""

import time
from pathlib import Path
from typing import Any

from deployed_site import Site, changed, config_of, deployed_site, until

from faults.matrix import Outcome, fault

TRAINS = "step 60 of"
SILENT_SECONDS = 90.0
"""After so long without a heartbeat a run has crashed."""


@fault("F03", "a GPU worker killed while it trains: crashed, begun again, goes on from its checkpoint")
def f03(folder: Path) -> Outcome:
    outcome = Outcome()
    with deployed_site(folder) as site:
        config = config_of(site)
        site.start_worker("cpu", "caller")
        site.start_worker("gpu", "one")
        with outcome.attempt("worker"):
            outcome.figures["seconds_to_crashed"] = kill_gpu_worker(site, config)
        with outcome.attempt("worker and run at once"):
            outcome.figures["seconds_to_crashed_unheard_of"] = kill_gpu_worker_and_run(site, config)
    return outcome


@fault("F04", "a worker started anew ends what the dead one left, and the run is begun again")
def f04(folder: Path) -> Outcome:
    outcome = Outcome()
    with deployed_site(folder) as site, outcome.attempt("worker and run at once"):
        site.start_worker("cpu", "caller")
        outcome.figures["seconds_to_crashed"] = kill_worker_and_start_it(site, config_of(site))
    return outcome


def kill_gpu_worker(site: Site, config: dict[str, Any]) -> float:
    """Kill the worker; its training saves itself, and a new worker goes on with it.  Seconds from kill to Crashed."""
    run = site.start("pipeline/pipeline", changed(config, runs_on="gpu", seed=1))
    log = site.log("gpu", "one")
    until(lambda: log.exists() and TRAINS in log.read_text(), 150, lambda: site.told(run))
    child = site.runs_of("fine-tune")[0]["id"]
    began = time.monotonic()
    site.kill("gpu")
    until(lambda: "Crashed" in site.states(child), 30, lambda: site.told(run))
    seconds = time.monotonic() - began
    assert site.run(run)["state_type"] == "RUNNING", site.told(run)
    site.start_worker("gpu", "one")
    assert site.ended(run)["state_type"] == "COMPLETED", site.told(run)
    told = log.read_text()
    assert "goes on from checkpoint-" in told and told.count(TRAINS) == 1, told
    assert site.run(child)["run_count"] == 2
    return round(seconds, 1)


def kill_gpu_worker_and_run(site: Site, config: dict[str, Any]) -> float:
    """Kill both, and nobody comes to say so but the heartbeats that do not come.  Seconds from kill to Crashed."""
    log = site.log("gpu", "one")
    before = log.read_text().count(TRAINS)
    run = site.start("pipeline/pipeline", changed(config, runs_on="gpu", seed=4, max_restarts=0))
    until(lambda: log.read_text().count(TRAINS) > before, 150, lambda: site.told(run))
    child = site.runs_of("fine-tune")[0]["id"]
    began = time.monotonic()
    site.kill("gpu", int(site.run(child)["infrastructure_pid"]))
    until(lambda: site.run(child)["state_type"] == "CRASHED", SILENT_SECONDS + 30, lambda: site.told(run))
    seconds = time.monotonic() - began
    ended = site.ended(run)
    assert ended["state_type"] == "FAILED" and "Crashed" in ended["state"]["message"], site.told(run)
    return round(seconds, 1)


def kill_worker_and_start_it(site: Site, config: dict[str, Any]) -> float:
    """Kill a worker and its run; the next worker marks the run, which ends well.  Seconds from start to Crashed."""
    log = site.log("cpu", "caller")
    before = log.read_text().count(TRAINS)
    run = site.start("pipeline/pipeline", changed(config, seed=2))
    until(lambda: log.read_text().count(TRAINS) > before, 150, lambda: site.told(run))
    site.kill("cpu", int(site.run(run)["infrastructure_pid"]))
    assert site.run(run)["state_type"] == "RUNNING", site.told(run)
    began = time.monotonic()
    site.start_worker("cpu", "caller")
    until(lambda: "Crashed" in site.states(run), 60, lambda: site.told(run))
    seconds = time.monotonic() - began
    assert site.ended(run)["state_type"] == "COMPLETED", site.told(run)
    assert "AwaitingRetry" in site.states(run)
    assert "marked as crashed, its process is gone: " in log.read_text()
    return round(seconds, 1)
