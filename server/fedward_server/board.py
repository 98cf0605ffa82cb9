"""What a run's process tells of itself, kept up from the coordinator's own records: no sockets, no clock, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fedward_common.study import Study
from fedward_server.journal import Accepted, Asking, Enrolled, Extended, Joined, Missed, Record
from fedward_server.result import RoundResult, RunResult
from fedward_server.run_status import RunState, RunStatus, SiteStatus

__all__ = ["Board"]


@dataclass
class Board:
    """A run's status, step by step.

    Args:
        study: the contract.
        pid: of the run's process.
        now: gives the time as ISO 8601 in UTC.
        show: given each new status.
    """

    study: Study
    pid: int
    now: Callable[[], str]
    show: Callable[[RunStatus], None]
    state: RunState = "starting"
    round: int = 0
    opened_at: str | None = None
    reason: str | None = None
    sites: dict[str, SiteStatus] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = {site: SiteStatus(state="absent") for site in self.study.sites}

    def enter(self, state: RunState, reason: str | None = None) -> None:
        """Tell that the run does something else now."""
        self.state, self.reason = state, reason
        self._show()

    def again(self) -> None:
        """Tell once more how the run stands, as a sign of life."""
        self._show()

    def awaiting(self, enrolled: Iterable[str], excluded: Mapping[str, str], reason: str) -> None:
        """Tell who has said yes before the first round, and why the run waits for others."""
        self._put({site: SiteStatus(state="absent", reason=why) for site, why in excluded.items()})
        self._put({site: SiteStatus(state="waiting") for site in enrolled})
        self.enter("enrolling", reason)

    def told(self, record: Record) -> None:
        """Take over what the coordinator has written down."""
        match record:
            case Enrolled():
                self._enrolled(record)
            case Asking():
                if record.round != self.round:
                    self.round, self.opened_at = record.round, self.now()
                self._put(dict.fromkeys(record.sites, SiteStatus(state="waiting")))
            case Joined():
                self._put({record.seat.site: SiteStatus(state="waiting")})
            case Accepted():
                self._put({record.site: SiteStatus(state="accepted")})
            case Extended():
                self.enter("running", f"round {record.round} waits for a quorum")
                return
            case Missed():
                state = SiteStatus(state="excluded" if record.for_good else "missed", reason=record.reason)
                self._put({record.site: state})
            case _:
                return
        self.state, self.reason = "running", None
        self._show()

    def closed(self, entry: RoundResult) -> None:
        """Tell that a round is committed."""
        self.round = entry.round
        self._put({site: SiteStatus(state="accepted") for site in entry.sites})
        lasting = {site: said.state for site, said in self.sites.items() if said.state in {"excluded", "absent"}}
        self._put({
            site: SiteStatus(state=lasting.get(site, "missed"), reason=reason)
            for site, reason in entry.missing.items()
        })  # fmt: skip
        self._show()

    def ended(self, result: RunResult) -> None:
        """Tell how the run has ended."""
        self.state, self.reason, self.round = result.status, result.reason, len(result.rounds)
        for site, said in result.sites.items():
            if said.status == "excluded":
                self.sites[site] = SiteStatus(state="excluded", reason=said.reason)
        self._show()

    def _enrolled(self, record: Enrolled) -> None:
        self._put({seat.site: SiteStatus(state="waiting") for seat in record.seats})
        self._put({
            site: SiteStatus(state="absent" if site in record.away else "excluded", reason=why)
            for site, why in record.excluded.items()
        })  # fmt: skip

    def _put(self, states: dict[str, SiteStatus]) -> None:
        self.sites |= {site: state for site, state in states.items() if site in self.sites}

    def _show(self) -> None:
        self.show(
            RunStatus(
                state=self.state,
                round=self.round,
                rounds=self.study.training.rounds,
                sites=dict(self.sites),
                opened_at=self.opened_at,
                updated_at=self.now(),
                pid=self.pid,
                reason=self.reason,
            )
        )
