"""All checks, side by side: one that fails, hangs or blows up says so, and the others go on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fedward_client.doctor import files, machine, network
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level
from fedward_common.errors import FedwardError

__all__ = ["CHECKS", "Check", "examine"]

_NETWORK_S: Final = 5.0
_LOCAL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at.

    Args:
        name: what findings are called.
        look: the check; what it yields counts, what it raises is a FAIL.
        limit_s: seconds after which it has failed, counted from the start of the examination.
    """

    name: str
    look: Callable[[Place], Iterable[Finding]]
    limit_s: float = _LOCAL_S


CHECKS: Final[tuple[Check, ...]] = (
    Check("policy", files.policy),
    Check("enrolment", files.enrolment),
    Check("dns", network.dns, _NETWORK_S),
    Check("proxy", network.proxy, _NETWORK_S),
    Check("tls", network.tls, _NETWORK_S),
    Check("certificates", network.certificates, _NETWORK_S),
    Check("clock", network.clock, _NETWORK_S),
    Check("identity", network.identity, _NETWORK_S),
    Check("disk", machine.disk),
    Check("memory", machine.memory),
    Check("shm", machine.shm),
    Check("software", machine.software),
    Check("training", machine.training),
    Check("gpu", machine.gpu),
    Check("files", files.permissions),
    Check("ledger", files.ledger),
    Check("audit", files.audit),
    Check("cohorts", files.cohorts),
    Check("daemon", network.daemon, _NETWORK_S),
)


def examine(place: Place, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Run `checks` side by side and yield what they find, in their order; never raises for a check's fault.

    Every check yields at least one finding, and the last finding comes no later than the longest limit.
    """
    begun = time.monotonic()
    for check, answers in [(check, _begin(check, place)) for check in checks]:
        try:
            yield from answers.get(timeout=max(0.0, begun + check.limit_s - time.monotonic()))
        except queue.Empty:
            what = f"no result within {check.limit_s:.0f} s"
            yield Finding(check.name, Level.FAIL, what, "run it again; if it stays, look for what hangs: disk, network")


def _begin(check: Check, place: Place) -> queue.SimpleQueue[list[Finding]]:
    answers: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()
    target = lambda: answers.put(_looked(check, place))  # noqa: E731  (a closure for one thread)
    threading.Thread(target=target, name=f"doctor-{check.name}", daemon=True).start()
    return answers


def _looked(check: Check, place: Place) -> list[Finding]:
    try:
        return list(check.look(place)) or [Finding(check.name, Level.PASS, "nothing to check")]
    except FedwardError as error:
        remedy = error.remedy or "the message names the file or key"
        return [Finding(check.name, Level.FAIL, error.message, remedy)]
    except Exception as error:  # noqa: BLE001  (one check's fault must not hide what the others find; its text may quote data)
        return [Finding(check.name, Level.FAIL, f"the check stopped: {type(error).__name__}", _unforeseen(check))]


def _unforeseen(check: Check) -> str:
    return f"report it with the output of: fedward client doctor --only {check.name} --json"
