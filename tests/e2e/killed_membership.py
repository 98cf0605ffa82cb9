"""A process of its own for `test_killed_membership`: enrols or renews a site, killed before every single step."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from fedward_client.config import create_site
from fedward_client.connection import load_connection, open_way
from fedward_client.enrolment import KeyFile, enroll, finish, renew
from fedward_client.flower_adapter import NotAdmittedError, open_fleet
from fedward_server.centre import invitation, load_centre
from tests.centres import now

CHANGES = {"os.rename", "os.remove", "os.mkdir", "socket.connect"}


def in_a_child(work: Callable[[], object], after: int | None = None) -> int:
    """Run `work` in a fork that is killed before its step number `after`; return how it ended (-9: killed)."""
    child = os.fork()
    if child == 0:
        if after is not None:
            _die_before_step(after)
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (a fork must not go on as its parent)
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_before_step(after: int) -> None:
    """Kill this process, without any clean-up, before its step `after` that changes a file or calls the centre."""
    done = 0

    def dies(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or written:
            done += 1
            if done > after:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(dies)


def works(home: Path) -> int:
    """Return 0 if the centre accepts this site, as its daemon would connect now."""

    def connect() -> None:
        finish(home)
        settings = load_connection(home)
        key = KeyFile(settings.node_key)
        with open_fleet(
            settings.superlink, open_way(settings, {}).tls, key, threading.Event(), wait_s=0.1, patience_s=2.0
        ) as fleet:
            fleet.receive()

    try:
        return in_a_child(connect)
    except NotAdmittedError:
        return 1


def campaign(what: str, centre: Path, folder: Path) -> list[dict[str, object]]:
    """Kill before step 0, 1, 2, … until nothing is left to kill; return what became of each site."""
    outcomes: list[dict[str, object]] = []
    for after in range(200):
        home, config = folder / f"{what}{after}", load_centre(centre)
        create_site(home, f"{what}{after}")
        invite = invitation(config, f"{what}{after}", now())

        def join(home: Path = home, invite: object = invite) -> None:
            enroll(home, invite, now())  # type: ignore[arg-type]

        def change(home: Path = home) -> None:
            renew(home, now())

        work: Callable[[], None] = join
        if what == "renew":
            assert in_a_child(join) == 0
            work = change
        ended = in_a_child(work, after)
        between = works(home) if what == "renew" else None
        again = in_a_child(work) if ended else 0
        outcomes.append({"ended": ended, "between": between, "again": again, "works": works(home)})
        if ended == 0:
            return outcomes
    return outcomes


if __name__ == "__main__":
    json.dump(campaign(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), sys.stdout)
