"""Messages that are out and their replies as they come, on time or late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedward_server.journal import Asked, Asking, RoundLog

__all__ = ["NamingGrid", "Post", "Question"]

_LATEST_S: Final = 600.0


@runtime_checkable
class NamingGrid(Protocol):
    """A grid that outlives this process and tells what its messages are called before they leave."""

    @property
    def lineage(self) -> str:
        """Where another process finds the messages again."""

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        """Push messages; `note` is told the next identifiers, in order, before they leave."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a message asks, and whom.

    Attributes:
        node: where it went.
        site: the site there, or ``node N``.
        round: of its task; 0 for the roll call.
        until: by our clock, when the grid forgets it.
        adopted: whether an earlier process sent it.
    """

    node: int
    site: str
    round: int
    until: float
    adopted: bool = False


@dataclass
class Post:
    """The messages of one run.

    Args:
        grid: how they travel.
        log: told of every task before it leaves.
        clock: monotonic seconds.
    """

    grid: Grid
    log: RoundLog
    clock: Callable[[], float]
    out: dict[str, Question] = field(default_factory=dict)

    @property
    def lineage(self) -> str:
        """Where another process finds the messages again; empty where none does."""
        return self.grid.lineage if isinstance(self.grid, NamingGrid) else ""

    def adopt(self, messages: Mapping[str, int], sites: Mapping[int, str], round_: int, seconds: float) -> None:
        """Wait for the replies to an earlier process's tasks of a round: nodes by identifier."""
        until = self.clock() + seconds
        self.out |= {key: Question(node, sites[node], round_, until, adopted=True) for key, node in messages.items()}

    def send(
        self, sites: Mapping[int, str], content: RecordDict, round_: int, seconds: float, *, ends: float = 0.0
    ) -> None:
        """Send one content to every node; those that the grid does not take are not waited for.

        Of a task, it is logged whom it goes to before it leaves, and what the messages are called: before as well where
        the grid can tell, else behind. The grid keeps a task for longer than the round, so that a late reply is known
        as one: twice as long, 10 min more at most.

        Args:
            sites: whom to ask, by node.
            content: what.
            round_: of the task; 0: the roll call.
            seconds: how long a reply is of use.
            ends: the round's end in Unix seconds, for the log.
        """
        if not sites:
            return
        kept = seconds + (min(seconds, _LATEST_S) if round_ else 0)
        kind, group = "train" if round_ else "query", str(round_)
        messages = [Message(content, node, kind, ttl=kept, group_id=group) for node in sites]
        rest = iter(sites.values())

        def note(identifiers: list[str]) -> None:
            if round_:
                named = dict(zip(identifiers, rest, strict=False))
                self.log.write(Asked(round=round_, lineage=self.lineage, messages=named))

        if round_:
            self.log.write(Asking(round=round_, sites=tuple(sites.values()), until=ends))
        if isinstance(self.grid, NamingGrid):
            identifiers = self.grid.push_named(messages, note)
        else:
            identifiers = list(self.grid.push_messages(messages))
            note(identifiers)
        asked = [Question(node, site, round_, self.clock() + kept) for node, site in sites.items()]
        self.out |= {key: question for key, question in zip(identifiers, asked, strict=True) if key}

    def replies(
        self, ends: float, poll_seconds: float, awaited: Callable[[], bool]
    ) -> Iterator[tuple[Question, Message]]:
        """Yield each reply as it arrives, whatever round it answers, while any is awaited and the time is not over.

        A reply to a message that another node was asked is nobody's: it neither counts nor costs that node its own.

        Args:
            ends: by our clock.
            poll_seconds: shortest time from one look to the next; a grid that waits itself takes its own.
            awaited: asked before each look.
        """
        while awaited() and self.clock() < ends:
            looked = time.monotonic()
            replies = list(self.grid.pull_messages(list(self.out)))
            idle = not replies
            while replies:
                reply = replies.pop(0)
                question = self.out.get(key := reply.metadata.reply_to_message_id)
                if question is not None and (reply.has_error() or reply.metadata.src_node_id == question.node):
                    del self.out[key]
                    yield question, reply
                del reply
            if idle:
                time.sleep(max(0.0, poll_seconds - (time.monotonic() - looked)))

    def forget_expired(self) -> None:
        """Stop looking for replies to messages that the grid has forgotten."""
        now = self.clock()
        self.out = {key: question for key, question in self.out.items() if now < question.until}
