"""A coordinator that is killed where one likes, over a grid that outlives it as a SuperLink does."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy.typing as npt
import pytest
from flwr.app import Error, Message, RecordDict

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.study import Study
from fedward_common.wire import Enrolment, write_enrolment, write_refusal, write_update
from fedward_server import journal_file
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import HoldOut, Predictor, TorchPredictor
from fedward_server.journal import story_of
from fedward_server.journal_file import JournalFile
from fedward_server.result import RunResult
from fedward_server.root import RootTrainer
from fedward_server.rounds import Roster
from tests.builders import hold_out, update
from tests.doubles import Behaviour, Delivery, Exchange, Script, ScriptedGrid

_UNAVAILABLE = 3  # Flower's ErrorCode.MESSAGE_UNAVAILABLE


class Killed(BaseException):
    """The process is gone: nothing of ours may catch this."""


@dataclass
class Reaper:
    """Kills at the instant with this number, counted from 1; 0 kills nobody and counts."""

    at: int = 0
    seen: list[str] = field(default_factory=list)

    def instant(self, name: str) -> None:
        """Pass an instant, or do not."""
        self.seen.append(name)
        if len(self.seen) == self.at:
            raise Killed(name)


class LastingGrid(ScriptedGrid):
    """A scripted grid that another coordinator finds its messages in again.

    Like a SuperLink it names messages before they leave, hands out a reply once, and says of a message that never
    arrived or whose reply is gone that it is unavailable.
    """

    def __init__(self, homes: Mapping[str, Path | None], script: Script | None = None) -> None:
        super().__init__(homes, script)
        self.reaper = Reaper()
        self.lineage = "superlink"
        self.delivered: Counter[tuple[str, int]] = Counter()
        self._named: dict[str, Message] = {}
        self._arrived: set[str] = set()
        self._gone: set[str] = set()

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        self.reaper.instant("push")
        named = {str(uuid4()): message for message in messages}
        self._named |= named
        note(list(named))
        for identifier, message in named.items():
            self.reaper.instant("between the messages of a push")
            self._push(message, identifier)
            self._arrived.add(identifier)
        self.reaper.instant("pushed")
        return list(named)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.reaper.instant("pull")
        wanted = list(message_ids)
        gone = [i for i in wanted if i in self._gone or i not in self._arrived]
        replies = list(super().pull_messages(wanted))
        for reply in replies:
            self._gone.add(reply.metadata.reply_to_message_id)
            site = self.roster[reply.metadata.src_node_id]
            self.delivered[site, int(reply.metadata.group_id)] += 1
        self.reaper.instant("pulled")
        return [*replies, *(self._unavailable(identifier) for identifier in gone)]

    def _unavailable(self, identifier: str) -> Message:
        message = self._named[identifier]
        message.metadata.__dict__["_message_id"] = identifier
        return Message(Error(_UNAVAILABLE, "message unavailable"), reply_to=message)


def answering(study: Study, *, patients: int = 40) -> Behaviour:
    """Return a site without a home that answers a question with the same bits however often it is asked."""

    def behaviour(exchange: Exchange) -> list[Delivery]:
        return [Delivery(_answer(study, exchange, patients))]

    return behaviour


def paying(study: Study) -> Behaviour:
    """Return a site without a home that has a ledger: it answers a round once, and refuses it afterwards.

    Sites answer one after another, so that no look finds two replies.
    """
    paid: set[tuple[str, int]] = set()

    def behaviour(exchange: Exchange) -> list[Delivery]:
        if exchange.round and (exchange.site, exchange.round) in paid:
            replayed = Refusal(RefusalCode.ROUND_REPLAYED, fields={"round": exchange.round})
            return [Delivery(write_refusal(exchange.site, replayed))]
        paid.add((exchange.site, exchange.round))
        return [Delivery(_answer(study, exchange, 40), after=1.0 + study.sites.index(exchange.site))]

    return behaviour


def _answer(study: Study, exchange: Exchange, patients: int) -> RecordDict:
    if exchange.round == 0:
        return write_enrolment(Enrolment(exchange.site, study.digest, patients, "1"))
    seed = sum(map(ord, exchange.site)) + exchange.round
    weight = patients if study.aggregation.weighting == "patients" else 1
    return write_update(update(study, site=exchange.site, round_=exchange.round, weight=weight, seed=seed))


@dataclass
class Scene:
    """One run's folder, its sites and the grid between; coordinators come and go."""

    study: Study
    folder: Path
    grid: ScriptedGrid
    roster: Roster | None = None
    root: RootTrainer | None = None
    central: HoldOut = field(init=False)
    predictor: Predictor = field(init=False)

    def __post_init__(self) -> None:
        self.central = hold_out(self.study)
        self.predictor = TorchPredictor(self.study, self.central.rows.features)
        self.folder.mkdir(exist_ok=True)

    @classmethod
    def of(cls, study: Study, folder: Path, script: Mapping[Any, Behaviour] | None = None) -> Scene:
        """Return a scene of sites without homes that answer, or do as scripted."""
        everybody: dict[Any, Behaviour] = dict.fromkeys(study.sites, answering(study))
        grid = LastingGrid(dict.fromkeys(study.sites), {**everybody, **(script or {})})
        return cls(study, folder, grid, grid.roster)

    @property
    def reaper(self) -> Reaper:
        assert isinstance(self.grid, LastingGrid)
        return self.grid.reaper

    @property
    def model(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()

    def coordinator(self, study: Study | None = None) -> Coordinator:
        """Return a new coordinator for the folder."""
        chosen, clock = study or self.study, self.grid.clock
        return Coordinator(chosen, self.central, self.predictor, self.folder, "rehearsal", clock=clock, root=self.root)

    def run(self, study: Study | None = None) -> RunResult:
        """Start a coordinator on the folder."""
        return self.coordinator(study).run(self.grid, self.roster, poll_seconds=0)

    def killed_at(self, instant: int, patch: pytest.MonkeyPatch) -> bool:
        """Start a coordinator and kill it; False if it ended before."""
        assert isinstance(self.grid, LastingGrid)
        self.grid.reaper = Reaper(instant)
        try:
            with files_of(self.grid.reaper, patch):
                self.run()
        except Killed:
            return True
        finally:
            self.grid.reaper = Reaper()
        return False

    def accepted(self) -> set[tuple[str, int]]:
        """Return the updates that were accepted, by site and round: in the journal and in the checkpoint."""
        journal, entries = JournalFile.reopen(self.folder / "journal.fedward", body=1 << 20)
        journal.close()
        told = story_of(entry.record for entry in entries).open
        return {(site, told.round) for site in told.accepted} if told else set()


def die_everywhere(
    fresh: Scene, folder: Path, monkeypatch: pytest.MonkeyPatch, kept: Callable[[Path], npt.NDArray[Any]]
) -> None:
    """Assert that a run killed at any instant, centre and sites at once, ends as one that nobody kills.

    Each write of what a site keeps is tried, of the others each fourth.

    Args:
        fresh: a scene that has not run, whose sites have their homes in ``folder / "fresh"``.
        folder: whose ``fresh`` holds the homes; anything else in it is this function's.
        monkeypatch: the test's.
        kept: what a site's home keeps, as an array; compared after the last round.
    """
    a = fresh.study
    for site in a.sites:
        shutil.copytree(folder / "fresh" / site, folder / "kept" / site)
    assert isinstance(fresh.grid, LastingGrid)
    fresh.grid.reaper = reaper = Reaper()
    with files_of(reaper, monkeypatch):
        fresh.run()
    assert f"put {a.digest}.npz" in reaper.seen
    for at, name in enumerate(reaper.seen, start=1):
        if at % 4 and ".npz" not in name:
            continue
        run = folder / f"run-{at}"
        shutil.copytree(folder / "kept", run)
        grid = LastingGrid({site: run / site for site in a.sites})
        scene = Scene(a, run / "centre", grid, grid.roster)
        assert scene.killed_at(at, monkeypatch), name
        scene.run()
        assert scene.model == fresh.model, name
        for site in a.sites:
            assert (kept(run / site) == kept(folder / "fresh" / site)).all(), name
        shutil.rmtree(run)


@contextmanager
def files_of(reaper: Reaper, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the reaper see every write to the journal, every sync, every file put in place and every file removed."""
    fsync, replace, unlink, write_all = os.fsync, Path.replace, Path.unlink, journal_file._write_all

    def synced(handle: int) -> None:
        reaper.instant("sync")
        fsync(handle)
        reaper.instant("synced")

    def replaced(self: Path, target: Path) -> Path:
        reaper.instant(f"put {target.name}")
        path = replace(self, target)
        reaper.instant(f"have put {target.name}")
        return path

    def removed(self: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002  (pathlib's own)
        reaper.instant(f"remove {self.name}")
        unlink(self, missing_ok=missing_ok)

    def written(file: Any, content: memoryview) -> None:
        write_all(file, content[: len(content) // 2])
        reaper.instant("half a record")
        write_all(file, content[len(content) // 2 :])

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", removed)
        patch.setattr(journal_file, "_write_all", written)
        yield
