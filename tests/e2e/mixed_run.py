"""One side of a run whose centre and sites are of different releases; run by the Python path of that side's release.

``homes FOLDER`` makes the sites' folders as their own release does and prints the study's digest; ``run FOLDER SITES``
runs the study from the centre's side, its daemons with SITES as their Python path, and prints what came of it. Both
print one line of JSON. Nothing here may be younger than the oldest release that is tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.engines.deployed import LoggedProcess, SuperLinkProcess, write_home
from fedward_simulations.federation import settle
from fedward_simulations.run import compose_plan

OVERRIDES = ["privacy=none", "training=minibatch", "training.rounds=2", "engine=deployed", "seed=7"]
DAEMON = ["fedward_client.daemon", "--home"]


@contextlib.contextmanager
def python_path(path: str) -> Iterator[None]:
    """Let processes that are started meanwhile import Fedward from `path`."""
    own = os.environ["PYTHONPATH"]
    os.environ["PYTHONPATH"] = path
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = own


def homes(folder: Path) -> dict[str, object]:
    plan, federation, study = compose_plan(OVERRIDES)
    settle(federation, study, plan.policy, folder / "sites")
    return {"digest": study.digest, "room": sys.modules["fedward_client"].__path__[0]}


def run(folder: Path, sites: str) -> dict[str, object]:
    _, federation, study = compose_plan(OVERRIDES)
    predictor = TorchPredictor(study, federation.hold_out.rows.features)
    coordinator = Coordinator(study, federation.hold_out, predictor, folder, "deployed", resumable=False)
    with contextlib.ExitStack() as stack:
        superlink = stack.enter_context(SuperLinkProcess(folder / "logs"))
        known = {site: write_home(folder / "sites" / site, superlink) for site in study.sites}
        superlink.await_ready()
        roster = {superlink.client.register(key, site): site for site, key in known.items()}
        with python_path(sites):
            daemons = [LoggedProcess(site, [*DAEMON, str(folder / "sites" / site)], folder / "logs") for site in known]
            for daemon in daemons:
                stack.enter_context(daemon)
        bundle = code_free_bundle()
        grid, _ = stack.enter_context(superlink.client.session(superlink.client.start_run(bundle)))
        deadline = time.monotonic() + 60
        while set(roster) - set(grid.get_node_ids()) and time.monotonic() < deadline:
            time.sleep(0.05)
        result = coordinator.run(grid, roster)
        for daemon in daemons:
            daemon.ask_to_stop()
    return {
        "digest": study.digest,
        "room": sys.modules["fedward_server"].__path__[0],
        "status": result.status,
        "reason": result.reason,
        "model": result.model.sha256 if result.model else None,
        "rounds": {site: found.rounds for site, found in result.sites.items()},
    }


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    sys.stdout.write(json.dumps(homes(where) if what == "homes" else run(where, sys.argv[3])) + "\n")
