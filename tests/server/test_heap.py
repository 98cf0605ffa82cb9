"""Rings of objects go with the request that left them, if it was large."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fedward_server.heap import drop_large, spare_what_stays


class Ring:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize(("handled", "stays"), [(0, True), ((1 << 20) - 1, True), (1 << 20, False), (1 << 30, False)])
def test_a_ring_goes_with_a_large_request(handled: int, *, stays: bool) -> None:
    ring = weakref.ref(Ring())
    drop_large(handled)
    assert (ring() is not None) == stays


def test_what_was_there_before_the_first_request_is_not_looked_at_again() -> None:
    before, frozen = Ring(), gc.get_freeze_count()
    spare_what_stays()
    assert gc.get_freeze_count() > frozen
    watch = weakref.ref(before)
    del before
    drop_large(1 << 20)
    assert watch() is not None
