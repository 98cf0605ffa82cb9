"""One production site before a hostile SuperLink: its daemon runs in a thread, its worker counts and trains nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import yaml
from flwr.app import ConfigRecord, RecordDict

from fedward_client.cohorts import TableEntry, open_cohort
from fedward_client.config import SiteConfig, write_site
from fedward_client.connection import load_connection
from fedward_client.daemon import Daemon, SiteBorder
from fedward_client.ledger import Ledger
from fedward_client.policy import Policy
from fedward_client.site import approve
from fedward_client.worker import Facts, InProcessWorker, Job, Session, Trained
from fedward_common.audit import AuditLog, Entry
from fedward_common.certificates import create_node_key
from fedward_common.errors import RefusalCode
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.study_file import Signature
from fedward_common.wire import PROTOCOL, write_roll_call, write_task
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.faults.flower_adapter import Parcel, Reply, parcel
from fedward_simulations.faults.superlink import HostileSuperLink

__all__ = ["COHORT", "NODE", "SITE", "CountingWorker", "SiteDownError", "Target", "Verdict", "hostile_study"]

SITE: Final = "north"
COHORT: Final = "cohort"
NODE: Final = 4711
_PATIENTS: Final = 32
_REPLY_S: Final = 30.0
_LOOK_S: Final = 0.2
_DECISIONS: Final = frozenset({"refused", "enrolled", "released", "released again"})
_STUDY: Final[dict[str, Any]] = {
    "name": "besieged",
    "sites": [SITE, "south"],
    "cohort": {
        "columns": {
            "age": {"kind": "numeric", "unit": "years", "minimum": 18, "maximum": 100},
            "stage": {"kind": "categorical", "categories": [1, 2, 3]},
        },
        "label": {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
    },
    "model": {"name": "linear"},
    "training": {"rounds": 10_000, "local_steps": 1, "sampling_rate": 0.01, "learning_rate": 0.5},
    "privacy": {
        "mechanism": "dp_sgd", "epsilon": 4.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 8.0,
    },
    "aggregation": {"rule": "fedavg"},
}  # fmt: skip


class SiteDownError(RuntimeError):
    """The site's daemon ended, or does not answer any more."""


def hostile_study(**changes: Any) -> Study:
    """Return the study that the site has approved; a mapping changes the named keys of a part."""
    values = {**_STUDY}
    for key, change in changes.items():
        old = values.get(key)
        values[key] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return Study.of(values)


class CountingWorker:
    """A `fedward_client.worker.Worker` that opens cohorts as a site does, trains nothing, and counts."""

    def __init__(self) -> None:
        self.trained = 0
        self._worker = InProcessWorker()

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """See `fedward_client.worker.InProcessWorker.open`."""
        with self._worker.open(job) as session:
            yield _CountedSession(self, session.facts)


@dataclass(frozen=True, slots=True)
class _CountedSession:
    worker: CountingWorker
    facts: Facts

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:  # noqa: ARG002  (the seam's signature)
        """Count, and change nothing."""
        self.worker.trained += 1
        return Trained(np.zeros_like(weights), float("nan"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one message came to.

    Attributes:
        code: the refusal's code; None: accepted.
        decisions: the log's entries about it that decide something.
        trained: how often the worker was asked to train.
        debited: rounds that were debited.
        faults: everything about the reply that no refusal may have; empty for an accepted message.
    """

    code: str | None
    decisions: tuple[Entry, ...]
    trained: int
    debited: int
    faults: tuple[str, ...] = ()

    @property
    def refused_properly(self) -> bool:
        """Whether it was refused as the campaign asks: coded, audited once, nothing trained, nothing debited."""
        return self.code is not None and not self.objections()

    def objections(self) -> list[str]:
        """Return everything that is wrong with this verdict as one on a hostile message."""
        found = list(self.faults)
        if self.code is None:
            found.append("it was accepted")
        if self.code == RefusalCode.INTERNAL:
            found.append("the site stumbled over it (internal_error)")
        if len(self.decisions) != 1:
            found.append(f"{len(self.decisions)} decisions are in the log")
        elif (said := _said(self.decisions[0])) != f"refused {self.code}":
            found.append(f"the log says {said}")
        if self.trained:
            found.append("it was trained on")
        if self.debited:
            found.append("a round was debited")
        return found


@dataclass
class Target:
    """The site, as a context manager.

    Args:
        folder: an empty folder for its home.
        policy: its limits; those of `Policy` with the test's rounds and without a signature by default.
        study: what is approved; None: `hostile_study`.
        signatures: what every message carries.
        foreign: see `HostileSuperLink`.
        message_bytes: largest message that the site accepts, in bytes.
    """

    folder: Path
    policy: Policy | None = None
    study: Study = field(default_factory=hostile_study)
    signatures: tuple[Signature, ...] = ()
    foreign: bytes = b""
    message_bytes: int = 8 << 20
    approved: bool = True
    worker: CountingWorker = field(default_factory=CountingWorker)

    def __enter__(self) -> Self:
        self.home = self.folder / SITE
        self.policy = self.policy or Policy(require_signature=False, max_rounds=10_000, min_patients=1)
        self.write_policy(self.policy)
        rows = "".join(f"{18 + row},{1 + row % 3},{'yes' if row % 2 else 'no'}\n" for row in range(_PATIENTS))
        (self.home / f"{COHORT}.csv").write_text(f"age,stage,outcome\n{rows}", encoding="ascii")
        if self.approved:
            approve(self.home, self.study, COHORT)
        self.log = AuditLog(self.home)
        self._seen = self._last_number()
        self._debited = len(self.debits())
        self._failure: BaseException | None = None
        with ExitStack() as stack:
            self.superlink = stack.enter_context(HostileSuperLink(NODE, self.foreign))
            self._connect()
            stop = threading.Event()
            daemon = Daemon(self.home, load_connection(self.home), SiteBorder(self.home, self.worker), stop)
            self._thread = threading.Thread(target=self._serve, args=(daemon,), daemon=True)
            self._thread.start()
            stack.callback(self._thread.join, _REPLY_S)
            stack.callback(stop.set)
            stack.callback(self.superlink.wake)
            if not self.superlink.await_calls("pull-messages", 1, _REPLY_S):
                msg = self.down("the site does not connect")
                raise SiteDownError(msg)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write_policy(self, policy: Policy) -> None:
        """Let these limits hold from the next message on."""
        write_site(self.home, SiteConfig(site=SITE, policy=policy, cohorts={COHORT: TableEntry(table=f"{COHORT}.csv")}))

    def fingerprint(self) -> str:
        """Return the cohort's, as it is now."""
        return open_cohort(TableEntry(table=f"{COHORT}.csv"), self.study.cohort, self.home).fingerprint()

    def roll_call(self, study: Study | None = None, signatures: Sequence[Signature] | None = None) -> RecordDict:
        """Return an honest roll call."""
        return write_roll_call(study or self.study, self.signatures if signatures is None else signatures)

    def task(self, round_: int = 1, study: Study | None = None, *, moved: float = 0.0) -> RecordDict:
        """Return an honest task, whose model is `moved` everywhere."""
        asked = study or self.study
        model = np.full(parameter_spec(asked).size, moved, dtype=np.float32)
        return write_task(asked, round_, model, self.signatures)

    def parcel(self, content: RecordDict, message_type: str = "train") -> Parcel:
        """Return `content` as an honest message to this site."""
        return parcel(content, target=NODE, message_type=message_type)

    def deliver(self, sent: Parcel | RecordDict) -> Verdict:
        """Hand one message to the site, wait for its reply, and return what came of it.

        Raises:
            SiteDownError: no reply comes.
        """
        trained = self.worker.trained
        self.superlink.send(sent if isinstance(sent, Parcel) else self.parcel(sent))
        reply = self._await_reply()
        code, faults = _read(reply)
        debits = len(self.debits())
        verdict = Verdict(
            code, tuple(self._new_decisions()), self.worker.trained - trained, debits - self._debited, tuple(faults)
        )
        self._debited = debits
        return verdict

    def down(self, what: str) -> str:
        """Return how the site went down."""
        alive = "the daemon lives" if self._thread.is_alive() else f"the daemon ended: {self._failure!r}"
        return f"{what}; {alive}"

    @property
    def alive(self) -> bool:
        """Whether the daemon serves."""
        return self._thread.is_alive()

    def debits(self) -> list[tuple[str, int]]:
        """Return the study and the round of every debit."""
        changes = Ledger(self.home / "ledger.sqlite").changes()
        return [(change.study, change.round) for change in changes if change.event == "reserved"]

    def _await_reply(self) -> Reply:
        deadline = time.monotonic() + _REPLY_S
        while (reply := self.superlink.reply(_LOOK_S)) is None:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                msg = self.down("no reply")
                raise SiteDownError(msg)
        return reply

    def _serve(self, daemon: Daemon) -> None:
        try:
            daemon.serve()
        except BaseException as error:  # noqa: BLE001  (a thread's end is what the campaign looks for)
            self._failure = error

    def _connect(self) -> None:
        create_node_key(self.home / "node.key")
        (self.home / "ca.pem").write_bytes(self.superlink.ca_pem)
        settings = {
            "superlink": self.superlink.public_address, "ca": "ca.pem", "node_key": "node.key", "proxy": "direct",
            "bundle_sha256": code_free_bundle().sha256, "message_bytes": self.message_bytes,
        }  # fmt: skip
        (self.home / "connection.yaml").write_text(yaml.safe_dump(settings), encoding="ascii")

    def _last_number(self) -> int:
        last = self.log.last(1)
        return last[0].number if last else 0

    def _new_decisions(self) -> list[Entry]:
        new = [entry for entry in self.log.last(12) if entry.number > self._seen]
        self._seen = new[-1].number if new else self._seen
        return [entry for entry in new if entry.event in _DECISIONS]


def _said(entry: Entry) -> str:
    """Return an entry's event and the code in it."""
    return f"{entry.event} {str(entry.fields.get('code', '')).split(' ')[0]}"


def _read(reply: Reply) -> tuple[str | None, list[str]]:
    """Return a reply's refusal code, if it is one, and what about it no refusal may have."""
    if reply.head.HasField("error"):
        return "", [f"Flower's error: {reply.head.error.reason[:80]}"]
    content = reply.content()
    header = content.get("fedward")
    if not isinstance(header, ConfigRecord):
        return "", ["a reply without a header"]
    if "refusal" not in header:
        return None, []
    text = str(header["refusal"])
    code, *fields = text.split(" ")
    faults = [f"{code!r} is no code"] if code not in set(RefusalCode) else []
    faults += [f"field {name!r}" for name in fields if name.partition("=")[0] not in _FIELDS]
    if set(content) != {"fedward"} or set(header) != {"protocol", "site", "refusal"} or header["protocol"] != PROTOCOL:
        faults.append("a refusal with more than protocol, site and code")
    return code, faults


_FIELDS: Final = frozenset({"asked", "key", "limit", "round", "rule_count"})
