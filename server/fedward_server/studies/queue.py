"""Which of the studies that wait may start now. Rules only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Place", "startable", "why_waiting"]


@dataclass(frozen=True, slots=True)
class Place:
    """A study as the queue sees it: its number and the hospitals that it asks."""

    id: str
    sites: tuple[str, ...]


def startable(waiting: Sequence[Place], busy: Iterable[Place], *, at_once: int, share_sites: bool = False) -> list[str]:
    """Return the numbers of those who may start, in the order in which they do.

    First come, first served: a study that waits for a hospital keeps its turn there, so that no later study that asks
    the same hospital overtakes it; one that asks none of these hospitals may go ahead.

    Args:
        waiting: in the order of the queue.
        busy: studies that ask hospitals at this moment.
        at_once: how many studies may do so together.
        share_sites: whether two of them may ask the same hospital; it answers one message at a time, so each makes
            the other's rounds longer.
    """
    working = list(busy)
    taken = {site for place in working for site in place.sites}
    free, chosen = at_once - len(working), list[str]()
    for place in waiting:
        if len(chosen) >= free:
            break
        if share_sites or not taken & set(place.sites):
            chosen.append(place.id)
        taken |= set(place.sites)
    return chosen


def why_waiting(
    place: Place, before: Iterable[Place], busy: Iterable[Place], *, at_once: int, share_sites: bool = False
) -> str:
    """Return why `place` does not start, in words, where `before` stand ahead of it in the queue."""
    working = list(busy)
    holders = [other for other in (*working, *before) if not share_sites and set(other.sites) & set(place.sites)]
    if holders:
        shared = sorted(set(holders[0].sites) & set(place.sites))
        return f"waits for {', '.join(shared)}, which {holders[0].id} asks first"
    return f"waits for one of {at_once} places ({len(working)} taken)"
