"""Peak memory of the centre in a round of many sites: Fedward beside stock Flower, both in one run.

    python -m fedward_simulations.bench.server_memory [--json] [--sites N] [--megabytes M] [--rounds N]

Counted are, on either side, the server application (Fedward: the coordinator with its journal and its central
evaluation in torch; Flower: FedAvg over Flower's own grid, without an evaluation) and the SuperLink, which is the same
program with its state in a database on the disk. The figure is the sum of both processes' VmHWM, the most that each
ever held, over the bytes of the float32 model; Python and its libraries are in it. Not counted: the sites (they answer
from this process, one after another), and what the kernel caches of files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from fedward_common.certificates import create_node_key, public_key_bytes
from fedward_common.errors import FedwardError
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.bench.harness import filesystem, machine, report
from fedward_simulations.bench.memory_probe import Probe
from fedward_simulations.bench.memory_sites import Sites
from fedward_simulations.engines.deployed import SuperLinkProcess
from fedward_simulations.run import compose_plan

__all__ = ["main", "study_of"]

_GOAL: Final = 2.5
_MB: Final = 1_000_000
_WIDEST: Final = 4096
_APPLICATION: Final = "fedward_simulations.bench.memory_application"


def study_of(base: Study, sites: int, size: int, rounds: int) -> Study:
    """Return a study of so many sites whose model, a perceptron, has about `size` parameters."""
    layers = max(2, math.ceil(size / _WIDEST**2) + 1)
    width = max(1, min(_WIDEST, round(math.sqrt(size / (layers - 1)))))
    values = base.model_dump(mode="json")
    values |= {
        "name": "memory",
        "sites": [f"site-{number}" for number in range(1, sites + 1)],
        "model": {"name": "mlp", "hidden": [width] * layers},
        "privacy": {"mechanism": "none"},
        "training": values["training"] | {"rounds": rounds},
        "aggregation": {"rule": "fedavg", "quorum": sites, "deadline_seconds": 7200},
    }
    return Study.of(values)


def _one_side(side: str, study: Study, hold_out: dict[str, Any], folder: Path, limit_s: float) -> dict[str, Any]:
    folder.mkdir()
    (folder / "study.json").write_bytes(StudyFile(study, ()).dump())
    np.savez(folder / "hold_out.npz", allow_pickle=False, **hold_out)
    began = time.monotonic()
    with SuperLinkProcess(folder / "logs") as superlink:
        superlink.await_ready()
        client = superlink.client
        keys = {site: folder / f"{site}.key" for site in study.sites}
        roster = {client.register(public_key_bytes(create_node_key(path)), site): site for site, path in keys.items()}
        task = {
            "address": client.address,
            "secret": client.secret.hex(),
            "run": client.start_run(code_free_bundle()),
            "roster": {str(node): site for node, site in roster.items()},
        }
        (folder / "ca.pem").write_bytes(superlink.ca_pem)
        (folder / "task.json").touch(mode=0o600)
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        sites = Sites(study, superlink.public_address, folder / "ca.pem", keys, stock=side == "flower")
        with (
            sites.answering(),
            _application(side, folder) as application,
            Probe({"application": application.pid, "superlink": superlink.process.pid}) as probe,
        ):
            _await(application, sites, limit_s, folder)
    model = 4 * parameter_spec(study).size
    peaks = {name: round(peak / _MB, 1) for name, peak in probe.peaks.items()}
    return {
        "peak_over_model": round(sum(probe.peaks.values()) / model, 3),
        "together_over_model": round(probe.together / model, 3),
        "peaks_mb": peaks,
        "together_mb": round(probe.together / _MB, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


@contextlib.contextmanager
def _application(side: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "application.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _APPLICATION, side, str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _await(application: subprocess.Popen[bytes], sites: Sites, limit_s: float, folder: Path) -> None:
    deadline = time.monotonic() + limit_s
    while application.poll() is None and not sites.failed and time.monotonic() < deadline:
        time.sleep(0.05)
    if application.returncode != 0 and not sites.failed:
        log = (folder / "application.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        msg = f"the application does not end its run in {limit_s:g} s, or fails:\n{log}"
        raise RuntimeError(msg)


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    _, federation, base = compose_plan(["study=breast_cancer", "model=mlp", "privacy=none"])
    study = study_of(base, options.sites, round(options.megabytes * _MB / 4), options.rounds)
    rows = federation.hold_out.rows
    hold_out = {"features": rows.features, "labels": rows.labels, "patients": rows.patients}
    sides: dict[str, Any] = {}
    for side in options.sides:
        sides[side] = _one_side(side, study, hold_out, folder / side, options.limit)
        shutil.rmtree(folder / side)
    return {
        **{f"{side}_peak_over_model": figures["peak_over_model"] for side, figures in sides.items()},
        **sides,
        "counted": "server application and SuperLink, sum of each one's VmHWM",
        "model_mb": round(4 * parameter_spec(study).size / _MB, 3),
        "sites": options.sites,
        "rounds": options.rounds,
        "filesystem": filesystem(folder),
        "machine": machine(),
    }


def main() -> None:
    """Measure both sides and print what each held over the size of the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--sites", type=int, default=16)
    parser.add_argument("--megabytes", type=float, default=400.0, help="of the float32 model, 10**6 bytes each")
    parser.add_argument("--rounds", type=int, default=2, help="the second starts from what the first one left")
    parser.add_argument("--folder", type=Path, help="where to work; it holds about 10 × sites × model for a while")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for each side")
    parser.add_argument("--sides", nargs="+", default=["fedward", "flower"], choices=["fedward", "flower"])
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the sites' own log
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything that was started is ended
    with tempfile.TemporaryDirectory(prefix="fedward-bench-", dir=options.folder) as folder:
        try:
            figures = _measure(options, Path(folder))
        except FedwardError as error:
            parser.exit(1, error.diagnostics() + "\n")
    lines = [
        f"{options.sites} sites, a model of {figures['model_mb']} MB, {options.rounds} rounds; {figures['counted']}"
    ]
    for side in options.sides:
        found = figures[side]
        parts = ", ".join(f"{name} {peak} MB" for name, peak in found["peaks_mb"].items())
        lines.append(f"{side:8} {found['peak_over_model']:8.2f} × the model   ({parts}; {found['seconds']} s)")
    report(figures, [*lines, f"goal for Fedward: at most {_GOAL:g} ×"], as_json=options.json)


if __name__ == "__main__":
    main()
