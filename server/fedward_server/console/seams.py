"""What the console needs of the book of studies and of the list of who may do what; it knows no more of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedward_server.run_status import Wish

__all__ = ["Caller", "Door", "StudyBook", "StudyLine", "Visitor", "WishMaker"]


class Caller(Protocol):
    """Who a token belongs to; `role` is viewer, scientist, operator or auditor."""

    @property
    def name(self) -> str:
        """The person's name, as it stands in the audit log."""

    @property
    def role(self) -> str:
        """What the person may do."""


class Door(Protocol):
    """The centre's list of tokens."""

    def caller(self, token: str) -> Caller:
        """Return whose token this is.

        Raises:
            FedwardError: it is nobody's.
        """


class StudyLine(Protocol):
    """One study that was submitted to the centre."""

    @property
    def id(self) -> str:
        """Its name in addresses and on the disk."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def digest(self) -> str:
        """SHA-256 of its contract."""

    @property
    def state(self) -> str:
        """queued, running, paused, stopping, completed, degraded, interrupted or failed."""

    @property
    def submitted_by(self) -> str:
        """Who submitted it."""

    @property
    def submitted_at(self) -> str:
        """ISO 8601 in UTC."""

    @property
    def ended_at(self) -> str | None:
        """ISO 8601 in UTC; None while it is not over."""

    @property
    def reason(self) -> str | None:
        """Why it stands as it does, if there is something to say."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The hospitals that it names."""


class StudyBook(Protocol):
    """The book of studies."""

    def entries(self) -> Sequence[StudyLine]:
        """Return all of them."""

    def entry(self, identifier: str, /) -> StudyLine:
        """Return one.

        Raises:
            CoordinatorError: there is none.
        """

    def folder(self, identifier: str, /) -> Path:
        """Return the folder of its run."""


class WishMaker(Protocol):
    """Tells a run what to do, in somebody's name, and writes that down in the audit log."""

    def __call__(self, identifier: str, wish: Wish, caller: Caller) -> None:
        """Tell it.

        Raises:
            FedwardError: this person may not, or the study is over.
        """


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person who has logged in: what pages know of them."""

    name: str
    role: str
