"""What a reply that is no update means: for the site in this round, for the rounds to come, and for the report."""

from __future__ import annotations

from typing import Final

from flwr.app import Message

from fedward_common.errors import RefusalCode, RejectedReply
from fedward_common.wire import read_refusal

__all__ = [
    "LATE",
    "NO_REPLY",
    "TRANSPORT",
    "ask_again",
    "is_unavailable",
    "may_return",
    "reason_of",
    "refusal_code",
    "refused_for_good",
    "unreachable",
]

NO_REPLY: Final = "no_reply_before_the_deadline"
TRANSPORT: Final = "transport_error"
LATE: Final = "reply_after_the_deadline"

_UNAVAILABLE: Final = 3  # Flower's ErrorCode.MESSAGE_UNAVAILABLE: never arrived there, or answered and forgotten
_FELL_OUT: Final = frozenset(
    {TRANSPORT, RefusalCode.TASK_CRASHED, RefusalCode.TASK_TIMED_OUT, RefusalCode.INTERNAL}
)  # fmt: skip
_TRANSIENT: Final = _FELL_OUT | {
    RefusalCode.TASK_OUT_OF_MEMORY, RefusalCode.OUTSIDE_HOURS, RefusalCode.ROUND_REPLAYED,
}  # fmt: skip
"""What costs a site one round and no more. A site killed behind its debit answers ``round_replayed``: it has paid, and
has no update to show; the next round is another."""


def reason_of(reply: Message) -> str | None:
    """Return why a reply is none: a refusal's code and fields, or the transport's error as a code; else None."""
    if not reply.has_error():
        return read_refusal(reply.content)
    reason = str(reply.error.reason or "")
    return reason[:256] if _code(reason) in set(RefusalCode) else f"{TRANSPORT} code={reply.error.code}"


def is_unavailable(reply: Message) -> bool:
    """Return whether the grid says that it has no such message."""
    return reply.has_error() and reply.error.code == _UNAVAILABLE


def refusal_code(error: RejectedReply) -> str:
    """Return the code that a refusal begins with."""
    return _code(str(error))


def refused_for_good(error: RejectedReply) -> bool:
    """Return whether a site that said this in a round is not asked in later ones either."""
    return error.check == "refused" and refusal_code(error) not in _TRANSIENT


def ask_again(error: RejectedReply) -> bool:
    """Return whether the same question may have another answer within the round.

    Not where the site has paid and has nothing to show, nor where the same data meet the same limit of memory.
    """
    return error.check == "refused" and _code(str(error)) in _FELL_OUT


def unreachable(reason: str) -> bool:
    """Return whether nobody is known to be there: such a site says who it is before it is asked to train again."""
    return _code(reason) in {NO_REPLY, TRANSPORT}


def may_return(reason: str) -> bool:
    """Return whether a site that missed a round for this reason may take part in it once it is there again."""
    return unreachable(reason) or _code(reason) == RefusalCode.OUTSIDE_HOURS


def _code(reason: str) -> str:
    return reason.split(" ", 1)[0]
