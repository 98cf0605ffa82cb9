"""A kill in the moment of the start: the runner goes on, or the daemon says so and may be started again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from fedward_client.daemon import main
from fedward_client.runner import Runner
from tests.builders import site_home

WORKER = "tests.tiny_worker:TinyWorker"


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


@contextmanager
def killing_probes(limit: int) -> Iterator[list[int]]:
    """Kill the first `limit` grandchildren of this process that come up."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < limit and not over.wait(0.0005):
            for child in [found for nursery in children_of(os.getpid()) for found in children_of(nursery)]:
                if child not in killed:
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                    killed.append(child)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_a_probe_that_is_killed_is_tried_again() -> None:
    """A kill in the moment of the start ended the daemon as misconfigured, and systemd does not start that again."""
    with killing_probes(1) as killed:
        runner = Runner(WORKER)
        runner.start()

    assert len(killed) == 1
    assert runner._sandbox is not None


def test_children_that_always_die_are_told_and_are_no_misconfiguration(tmp_path: Path) -> None:
    home = site_home(tmp_path)
    settings = {"superlink": "a:1", "ca": "ca.pem", "node_key": "node.key", "bundle_sha256": "0" * 64}
    (home / "connection.yaml").write_text(yaml.safe_dump(settings))
    with killing_probes(1000) as killed:
        assert main(["--home", str(home), "--worker", WORKER]) == 1

    assert len(killed) >= 3
