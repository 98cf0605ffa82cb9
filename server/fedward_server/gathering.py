"""Before the first round: wait until enough hospitals have connected and approved the study, for days if need be."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fedward_common.errors import QuorumLostError
from fedward_server.rounds import RoundLoop

if TYPE_CHECKING:
    from fedward_server.board import Board

__all__ = ["GRACE_S", "LONGEST_S", "gather"]

GRACE_S: Final = 10.0
"""How long hospitals that are not connected are waited for where the quorum could begin without them."""

LONGEST_S: Final = 900.0
_FIRST_S: Final = 5.0
_LOOK_S: Final = 0.2


def gather(
    call: Callable[[], RoundLoop],
    board: Board,
    wait: Callable[[float], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return once the quorum and each required hospital say yes; until then they are asked ever less often.

    Each roll call leaves an entry in each hospital's log, so the time between two doubles, up to `LONGEST_S`.

    Args:
        call: makes the loop of one roll call.
        board: told who is awaited, and why.
        wait: returns after as many seconds; may raise to end the waiting.
        clock: monotonic seconds.
    """
    pause = _FIRST_S
    _await_connected(call(), wait, clock)
    while True:
        loop = call()
        try:
            loop.enrol()
        except QuorumLostError as error:
            board.awaiting([e.site for e in loop.enrolments.values()], loop.excluded, error.message)
            wait(pause)
            pause = min(2 * pause, LONGEST_S)
        else:
            return


def _await_connected(loop: RoundLoop, wait: Callable[[float], None], clock: Callable[[], float]) -> None:
    wanted, until = set(loop.roster or ()), clock() + GRACE_S
    while not wanted <= {int(node) for node in loop.grid.get_node_ids()} and clock() < until:
        wait(_LOOK_S)
