"""The process of one run at the centre: it joins the SuperLink, or rejoins it, and coordinates the study to its end.

Started as ``python -m fedward_server.application --home CENTRE --run FOLDER``, again and again if need be: whatever
ended the process before, the next one goes on where it was. FOLDER holds ``study.json`` (signed) and ``run.json`` (what
the centre adds). Exit code 0: the run has a result; `AGAIN`: start me again; 2: another start does not mend it. SIGTERM
ends the process and not the run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from fedward_common.errors import CoordinatorError, FedwardError, InstallationError, TransportError
from fedward_common.logs import log_json_lines
from fedward_common.study import FLTrust
from fedward_common.study_file import StudyFile, read_study_file
from fedward_server.admission import counts
from fedward_server.bare_grid import BareGrid
from fedward_server.board import Board
from fedward_server.centre import load_centre, roster_of
from fedward_server.checkpoint import write_atomically
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.gathering import gather
from fedward_server.heap import give_back_what_is_freed
from fedward_server.hold_out import read_hold_out
from fedward_server.root import TorchRootTrainer, root_rows
from fedward_server.rounds import RoundLoop
from fedward_server.run_status import RunStatus, read_wish, write_status
from fedward_server.superlink import SuperLinkConfig, stop_when_input_closes

if TYPE_CHECKING:
    from flwr.app import Message

    from fedward_server.grid_flower_adapter import CoordinatorGrid
    from fedward_server.result import RoundResult, RunResult

__all__ = ["AGAIN", "RunSettings", "main", "run"]

AGAIN: Final = 75
"""Exit code of a process that should be started again: the SuperLink was away, or the process was told to stop."""

_MISCONFIGURED: Final = 2
_LOOK_S: Final = 0.5
_TELL_S: Final = 30.0
_TICKET: Final = "session.json"
_log = structlog.get_logger()


class SuspendedError(BaseException):
    """The process is told to end; its run is not. No part of the run may take it for a failure."""


class RunSettings(BaseModel):
    """``run.json``: what the centre adds to a study. `hold_out`: its table of central rows, or null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold_out: Path | None = None


class _Reins:
    """What the run is told from outside, obeyed where the coordinator waits.

    Args:
        folder: the run's.
        board: told while the run is paused, and every half minute that it is to give a sign of life.
    """

    def __init__(self, folder: Path, board: Board) -> None:
        self._folder, self._board = folder, board
        self.suspended = threading.Event()
        self._told = time.monotonic()

    def obey(self) -> None:
        """Return if the run may go on now.

        Raises:
            SuspendedError: the process is to end.
            KeyboardInterrupt: the run is to end, after its last committed round.
        """
        if self.suspended.is_set():
            raise SuspendedError
        if time.monotonic() >= self._told + _TELL_S:
            self._told = time.monotonic()
            self._board.again()
        if read_wish(self._folder) == "stop":
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or raise as `obey` does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.suspended.wait(min(left, _LOOK_S))
            self.obey()

    def between_rounds(self) -> None:
        """Return once the run may go on; see `obey`."""
        self.obey()
        if read_wish(self._folder) != "pause":
            return
        self._board.enter("paused", "by an operator")
        while read_wish(self._folder) == "pause":
            self.suspended.wait(_LOOK_S)
            self.obey()
        self._board.enter("running")


class _ReinedGrid(BareGrid):
    """The run's grid, which obeys before it sends or waits."""

    def __init__(self, grid: CoordinatorGrid, reins: _Reins) -> None:
        self._grid, self._reins = grid, reins

    @property
    def lineage(self) -> str:
        """See `NamingGrid`."""
        return self._grid.lineage

    def get_node_ids(self) -> Iterable[int]:
        """See Flower's `Grid`."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's `Grid`."""
        self._reins.obey()
        return self._grid.push_messages(messages)

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        """See `NamingGrid`."""
        self._reins.obey()
        return self._grid.push_named(messages, note)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower's `Grid`."""
        self._reins.obey()
        return self._grid.pull_messages(message_ids)


def run(home: Path, folder: Path) -> int:
    """Bring the run in `folder` to its end, at the centre in `home`; return the exit code.

    Raises:
        SuspendedError: the process is to end before.
        FedwardError: the study, the centre or the folder is at fault.
    """
    config, file = load_centre(home), read_study_file(folder / "study.json")
    if config.study_keys:
        file.verify(list(config.study_keys))
    board = Board(file.study, os.getpid(), _now, lambda status: _shown(folder, status))
    reins = _Reins(folder, board)
    signal.signal(signal.SIGTERM, lambda *_: reins.suspended.set())
    board.enter("starting")
    coordinator = _coordinator(folder, file, board, reins)
    result = _coordinated(config, folder, coordinator, board, reins)
    _report(folder, file, result)
    board.ended(result)
    return 0


def _coordinator(folder: Path, file: StudyFile, board: Board, reins: _Reins) -> Coordinator:
    settings = _settings(folder / "run.json")
    hold_out = read_hold_out(settings.hold_out, file.study) if settings.hold_out else None
    predictor = TorchPredictor(file.study, hold_out.rows.features) if hold_out else None
    rooted = hold_out if isinstance(file.study.aggregation, FLTrust) else None
    root = TorchRootTrainer(file.study, root_rows(file.study, rooted)) if rooted else None

    def listen(entry: RoundResult) -> None:
        board.closed(entry)
        reins.between_rounds()

    return Coordinator(
        file.study,
        hold_out,
        predictor,
        folder,
        "deployed",
        listen,
        signatures=file.signatures,
        told=board.told,
        root=root,
        patient=True,
    )


def _settings(path: Path) -> RunSettings:
    try:
        return RunSettings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return RunSettings()
    except (OSError, ValidationError) as error:
        msg = f"{path} cannot be read"
        raise InstallationError(msg, remedy='it holds {"hold_out": "TABLE"} or {"hold_out": null}') from error


def _coordinated(
    config: SuperLinkConfig, folder: Path, coordinator: Coordinator, board: Board, reins: _Reins
) -> RunResult:
    # Importing flwr takes seconds; a study that is at fault is told at once.
    from fedward_server.superlink_client import SuperLinkClient, code_free_bundle  # noqa: PLC0415

    client = SuperLinkClient(f"{config.private_host}:{config.private_port}", config.secret.read_bytes())
    with client.lasting_session(folder / _TICKET, code_free_bundle()) as session:
        _log.info("joined", run=session.grid.lineage, rejoined=session.rejoined)
        grid, study = _ReinedGrid(session.grid, reins), coordinator.study

        def call_roll(loop: RoundLoop) -> None:
            def anew() -> RoundLoop:
                loop.roster, loop.excluded = _roster(config, study.sites), _unfit(config, study.sites)
                loop.enrolments, loop.away = {}, set()
                return loop

            board.enter("enrolling")
            gather(anew, board, reins.wait)

        with contextlib.suppress(KeyboardInterrupt):  # the coordinator will hear it as well
            reins.between_rounds()
        board.enter("running")
        coordinator.unfit, coordinator.call_roll = _unfit(config, study.sites), call_roll
        result = coordinator.run(grid, _roster(config, study.sites))
        session.end()
    return result


def _roster(config: SuperLinkConfig, sites: Iterable[str]) -> dict[int, str]:
    """Return the nodes of the study's hospitals whose keys count now.

    Raises:
        CoordinatorError: none does.
    """
    wanted, now = set(sites), dt.datetime.now(dt.UTC)
    entries = [entry.row for entry in roster_of(config).entries() if entry.row.site in wanted]
    nodes = {row.node: row.site for row in entries if counts(row, now)}
    if not nodes:
        msg = "no hospital of this study is enrolled at this centre"
        raise CoordinatorError(msg, remedy="fedward server sites list shows who is; invite the others")
    return nodes


def _unfit(config: SuperLinkConfig, sites: Iterable[str]) -> dict[str, str]:
    """Return the study's hospitals whose releases do not work with this one now, each with what to upgrade."""
    outside = roster_of(config).outside(dt.datetime.now(dt.UTC))
    return {site: outside[site] for site in sites if site in outside}


def _report(folder: Path, file: StudyFile, result: RunResult) -> None:
    from fedward_server.report import render_report  # noqa: PLC0415  (matplotlib, at the end only)

    write_atomically(folder / "report.html", render_report(result, file.study).encode("utf-8"))


def _shown(folder: Path, status: RunStatus) -> None:
    try:
        write_status(folder, status)
    except OSError as error:  # the run is worth more than what is told of it
        _log.warning("status_not_written", cause=error.strerror)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def main(arguments: list[str] | None = None) -> int:
    """Run one run; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedward_server.application", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the centre's folder")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    log_json_lines()
    give_back_what_is_freed()
    if options.stop_on_eof:
        stop_when_input_closes()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(AGAIN))
    try:
        return run(options.home, options.run)
    except SuspendedError:
        _log.info("suspended")
        return AGAIN
    except TransportError as error:
        _log.warning("superlink_away", cause=error.message, remedy=error.remedy)
        return AGAIN
    except FedwardError as error:
        sys.stderr.write(error.diagnostics() + "\n")
        return _MISCONFIGURED


if __name__ == "__main__":
    sys.exit(main())
