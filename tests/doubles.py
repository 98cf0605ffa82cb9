"""Flower's grid in memory over real sites, with a script of what goes wrong on the way, and a clock that it moves.

Sites are `fedward_client.site.Site` on real folders: policy, approval, ledger, training and wire are the production
ones. A script says, for a site or for a site's round, what becomes of its reply; without a word in it the reply
arrives as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pandas as pd
from flwr.app import ConfigRecord, Error, Message, RecordDict
from safetensors.numpy import load

from fedward_client.policy import Policy
from fedward_client.site import Site
from fedward_common.errors import RefusalCode
from fedward_common.flower_adapter import assume_identity
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_server.bare_grid import BareGrid
from fedward_server.coordinator import Coordinator, Listener
from fedward_server.evaluation import HoldOut, Predictor, TorchPredictor
from fedward_server.result import RunResult
from fedward_server.rounds import Roster
from tests.builders import hold_out, site_home, table

CRASHED = 8  # Flower's ErrorCode.CLIENT_APP_CRASHED
STRANGER = 999
"""A node that no roster names."""


class FakeClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Delivery:
    """One reply on its way.

    Attributes:
        content: its records, or Flower's error.
        after: seconds between question and arrival.
        source: node that it comes from; None: the node that was asked.
    """

    content: RecordDict | Error
    after: float = 0.0
    source: int | None = None


@dataclass
class Exchange:
    """One question to one site; `honest` is the site's own answer, made when first looked at."""

    site: str
    round: int
    question: RecordDict
    home: Path | None

    @cached_property
    def honest(self) -> RecordDict:
        assert self.home is not None, f"{self.site} has no home and must be scripted"
        return Site(self.home).answer(self.question)


Behaviour = Callable[[Exchange], Iterable[Delivery]]
Script = Mapping[str | tuple[str, int], Behaviour]
"""Behaviours by site, or by site and round; round 0 is the roll call. The narrower key counts."""


def faithful(exchange: Exchange) -> Iterable[Delivery]:
    """Deliver what the site answers."""
    return [Delivery(exchange.honest)]


def silent(_: Exchange) -> Iterable[Delivery]:
    """Never reach the site, never answer."""
    return []


def lost(exchange: Exchange) -> Iterable[Delivery]:
    """Let the site train, and debit its ledger, and lose the reply."""
    assert exchange.honest is not None
    return []


def late(seconds: float) -> Behaviour:
    """Deliver the answer after `seconds`."""
    return lambda exchange: [Delivery(exchange.honest, after=seconds)]


def twice(exchange: Exchange) -> Iterable[Delivery]:
    """Deliver the same answer two times."""
    return [Delivery(exchange.honest), Delivery(exchange.honest)]


def replaced(change: Callable[[RecordDict], RecordDict]) -> Behaviour:
    """Deliver what `change` makes of the site's own answer."""
    return lambda exchange: [Delivery(change(exchange.honest))]


def says(content: RecordDict) -> Behaviour:
    """Deliver `content` without asking the site."""
    return lambda _: [Delivery(content)]


def fails(reason: str = RefusalCode.TASK_CRASHED, *, code: int = CRASHED, trained: bool = False) -> Behaviour:
    """Deliver Flower's error; with `trained` after the site has debited its ledger and trained."""

    def behaviour(exchange: Exchange) -> Iterable[Delivery]:
        assert not trained or exchange.honest is not None
        return [Delivery(Error(code, reason))]

    return behaviour


def from_stranger(change: Callable[[RecordDict], RecordDict]) -> Behaviour:
    """Deliver a forged answer from a node outside the roster first, then the site's own."""
    return lambda exchange: [
        Delivery(change(exchange.honest), source=STRANGER),
        Delivery(exchange.honest, after=1.0),
    ]


@dataclass
class _Waiting:
    due: float
    reply: Message


class ScriptedGrid(BareGrid):
    """A `flwr.serverapp.Grid` whose node i, counted from 2, is the i-th site by name.

    Args:
        homes: the sites' folders, by name; None for a site that the script speaks for.
        script: see `Script`.
        clock: moved on by one second with every look for replies.
        order: permutation of the arrivals of one look, as a list of sites; the rest come after.
    """

    def __init__(
        self,
        homes: Mapping[str, Path | None],
        script: Script | None = None,
        *,
        clock: FakeClock | None = None,
        order: Sequence[str] = (),
    ) -> None:
        assume_identity(run=1, node=1)
        self.clock = clock or FakeClock()
        self.homes = dict(homes)
        self.roster: Roster = dict(enumerate(sorted(homes), start=2))
        self.asked: list[tuple[str, int]] = []
        self._script = dict(script or {})
        self.order = list(order)
        self._waiting: list[_Waiting] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.roster)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message, identifier: str | None = None) -> str:
        identifier = identifier or str(uuid4())
        message.metadata.__dict__["_message_id"] = identifier
        site, round_ = self.roster[message.metadata.dst_node_id], int(message.metadata.group_id)
        self.asked.append((site, round_))
        exchange = Exchange(site, round_, message.content, self.homes[site])
        behaviour = self._script.get((site, round_)) or self._script.get(site) or faithful
        for delivery in behaviour(exchange):
            if isinstance(delivery.content, Error):  # the same call: Flower's overloads take one type each
                reply = Message(delivery.content, reply_to=message)
            else:
                reply = Message(delivery.content, reply_to=message)
            if delivery.source is not None:
                reply.metadata.__dict__["_src_node_id"] = delivery.source
            self._waiting.append(_Waiting(self.clock.now + delivery.after, reply))
        return identifier

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.clock.now += 1.0
        wanted = set(message_ids)
        due = [w for w in self._waiting if w.due < self.clock.now and w.reply.metadata.reply_to_message_id in wanted]
        self._waiting = [w for w in self._waiting if all(w is not d for d in due)]
        return sorted((w.reply for w in due), key=self._place)

    def _place(self, reply: Message) -> int:
        site = self.roster.get(reply.metadata.src_node_id, "")
        return self.order.index(site) if site in self.order else len(self.order)


# ------------------------------------------------------------------------------------------------------ hostile content
def with_header(**changes: Any) -> Callable[[RecordDict], RecordDict]:
    """Return a change of the header's entries; None takes one out."""

    def change(content: RecordDict) -> RecordDict:
        header = {**content.config_records["fedward"], **changes}
        kept = ConfigRecord({key: value for key, value in header.items() if value is not None})
        return RecordDict({**content, "fedward": kept})

    return change


def with_array(make: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]) -> Callable[[RecordDict], RecordDict]:
    """Return a change of the update's one vector, declared as what it then is."""

    def change(content: RecordDict) -> RecordDict:
        array = make(np.frombuffer(content.config_records["fedward"]["vector"], dtype=np.int64))  # type: ignore[arg-type]
        return with_header(dtype=array.dtype.str, length=array.size, vector=array.tobytes())(content)

    return change


def with_record(name: str, record: Any) -> Callable[[RecordDict], RecordDict]:
    """Return a change that adds or replaces a record; None takes it out."""

    def change(content: RecordDict) -> RecordDict:
        records = {**content, name: record}
        return RecordDict({key: value for key, value in records.items() if value is not None})

    return change


# ----------------------------------------------------------------------------------------------------------- whole runs
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rehearsed run left."""

    study: Study
    result: RunResult
    folder: Path
    grid: ScriptedGrid

    @property
    def model(self) -> bytes:
        """The released model, bit for bit."""
        return (self.folder / "model.safetensors").read_bytes()

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """The released model, packed."""
        tensors = load(self.model)
        return np.concatenate([tensors[name].ravel() for name in parameter_spec(self.study).names])

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@dataclass
class Rehearsal:
    """One study over sites with tables of their own, to be run again and again under different scripts.

    Args:
        study: the contract.
        root: an empty folder.
        frames: tables by site; 30, 40, 50, … rows by default.
        policy: of every site; an open one by default.
    """

    study: Study
    root: Path
    frames: Mapping[str, pd.DataFrame] | None = None
    policy: Policy | None = None
    homes: dict[str, Path] = field(init=False)
    central: HoldOut = field(init=False)
    predictor: Predictor = field(init=False)
    _runs: int = 0

    def __post_init__(self) -> None:
        sizes = {site: 30 + 10 * number for number, site in enumerate(self.study.sites)}
        frames = self.frames or {site: table(rows, seed=rows) for site, rows in sizes.items()}
        self.homes = {
            site: site_home(self.root / "sites", self.study, name=site, frame=frame, policy=self.policy)
            for site, frame in frames.items()
        }
        self.central = hold_out(self.study)
        self.predictor = TorchPredictor(self.study, self.central.rows.features)

    def run(
        self,
        script: Script | None = None,
        *,
        without: Sequence[str] = (),
        order: Sequence[str] = (),
        anonymous: bool = False,
        listener: Listener = lambda _: None,
        study: Study | None = None,
        unfit: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run the whole study once.

        Args:
            script: what goes wrong.
            without: sites that are not connected.
            order: see `ScriptedGrid`.
            anonymous: the nodes have no keys, so the coordinator takes their word for their names.
            listener: see `Coordinator`.
            study: what the centre asks instead of what the sites have approved.
            unfit: see `Coordinator`.
        """
        self._runs += 1
        folder = self.root / f"run-{self._runs}"
        folder.mkdir()
        homes: dict[str, Path | None] = {site: home for site, home in self.homes.items() if site not in without}
        grid = ScriptedGrid(homes, script, order=order)
        coordinator = Coordinator(
            study or self.study, self.central, self.predictor, folder, "rehearsal", listener, clock=grid.clock,
            unfit=unfit or {},
        )  # fmt: skip
        result = coordinator.run(grid, None if anonymous else grid.roster, poll_seconds=0)
        return Outcome(coordinator.study, result, folder, grid)
