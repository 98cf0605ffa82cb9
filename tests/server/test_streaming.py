"""Updates that go from the grid to the disk part by part: the same sums, checked before they count, flat memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import InstallationError, RejectedReply
from fedward_common.models import parameter_spec
from fedward_common.paged import BLOCK
from fedward_common.study import FedAdam
from fedward_common.wire import Enrolment, Update, write_update
from fedward_server.aggregation import Mean, Streaming, add_into, aggregator_for
from fedward_server.gatekeeper import Gatekeeper
from fedward_server.journal import Accepted, Asking, Begun, StoredUpdate
from fedward_server.journal_file import JournalFile
from fedward_server.server_steps import Adaptive, Scaled, Step
from tests.builders import small_study

STUDY = small_study()
SIZE = parameter_spec(STUDY).size
BEGUN = Begun(study=STUDY.digest, after=0, started="2026-11-27T00:00:00+00:00")
Values = npt.NDArray[np.int64]


def update(values: Values, site: str = "north", weight: int = 2) -> Update:
    return Update(site, STUDY.digest, 1, weight, 0, values, {})


def stored(journal: JournalFile, update: Update, *, parts: int = 3) -> StoredUpdate:
    cut = np.array_split(update.values, parts)
    head = replace(update, values=np.zeros(0, dtype=np.int64))
    return StoredUpdate(head, journal.write_parts(Accepted.of(update), len(update.values), cut), len(update.values))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalFile]:
    journal = JournalFile.create(tmp_path / "journal.fedward", BEGUN)
    yield journal
    journal.close()


# ------------------------------------------------------------------------------------------------------------ the sum
def steps() -> list[Step]:
    return [Scaled(0.7), Adaptive(FedAdam(quorum=2))]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("size", [1, 7, BLOCK + 3])
def test_updates_on_the_disk_and_in_memory_make_the_same_model_bit_for_bit(
    kind: int, size: int, journal: JournalFile
) -> None:
    draw = np.random.default_rng(size)
    weights = draw.normal(size=size).astype(np.float32)
    updates = [update(draw.integers(-(1 << 40), 1 << 40, size), weight=weight) for weight in (1, 5, 1 << 20)]
    whole, streamed, mixed = (Mean(steps()[kind]) for _ in range(3))
    for _ in range(2):
        for mean in (whole, streamed, mixed):
            mean.start(weights)
        for one in updates:
            whole.add(one)
        for number, one in enumerate(reversed(updates)):
            kept = stored(journal, one)
            streamed.take(kept)
            if number % 2:
                mixed.add(kept.whole())
            else:
                mixed.take(kept)
        models = [mean.finish() for mean in (whole, streamed, mixed)]
        assert models[0].tobytes() == models[1].tobytes() == models[2].tobytes()
        weights = models[0]


def test_sums_wrap_as_they_always_did_so_that_masks_cancel() -> None:
    total = np.array([(1 << 63) - 1, -5], dtype=np.int64)
    add_into(total, np.array([1, 5], dtype=np.int64))
    assert total.tolist() == [-(1 << 63), 0]


def test_numbers_of_another_length_are_never_spread_over_the_sum() -> None:
    with pytest.raises(ValueError, match="do not add"):
        add_into(np.zeros(3, dtype=np.int64), np.ones(1, dtype=np.int64))


def test_only_rules_that_need_no_update_whole_stream() -> None:
    assert isinstance(aggregator_for(STUDY), Streaming)
    five = small_study(
        sites=["a", "b", "c", "d", "e"], aggregation={"rule": "median", "quorum": 3, "weighting": "uniform"}
    )
    assert not isinstance(aggregator_for(five), Streaming)


def test_memory_does_not_grow_with_the_number_of_sites(journal: JournalFile) -> None:
    """Of the next model, the weights and some blocks; a third or a thirteenth site adds nothing."""
    size, peaks = 4 * BLOCK, []
    weights = np.zeros(size, dtype=np.float32)
    kept = stored(journal, update(np.ones(size, dtype=np.int64)))
    for sites in (3, 13):
        mean = Mean(Scaled(1.0))
        mean.start(weights)
        for _ in range(sites):
            mean.take(kept)
        tracemalloc.start()
        mean.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.02 * peaks[0]
    assert peaks[1] < weights.nbytes + 6 * 8 * BLOCK


# -------------------------------------------------------------------------------------------------------- the journal
def test_a_body_in_parts_is_the_record_that_a_whole_one_is(tmp_path: Path) -> None:
    values = np.arange(100) - 50
    paths = [tmp_path / "whole", tmp_path / "parts"]
    for path, parts in zip(paths, (1, 7), strict=True):
        journal = JournalFile.create(path, BEGUN)
        body = stored(journal, update(values), parts=parts).body
        found = np.empty(40, dtype=np.int64)
        body.read_into(found, 20)
        np.testing.assert_array_equal(found, values[20:60])
        with pytest.raises(ValueError, match="a body of 100 numbers has no 40 from 61 on"):
            body.read_into(found, 61)
        journal.close()
    assert paths[0].read_bytes() == paths[1].read_bytes()


class Refused(Exception):  # noqa: N818  (a reply is refused)
    pass


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_reply_that_is_refused_in_its_middle_leaves_the_journal_as_it_was(at: int, journal: JournalFile) -> None:
    asking = Asking(round=1, sites=("north",))
    journal.write(asking)
    before = journal.path.read_bytes()

    def parts() -> Iterator[Values]:
        yield from [np.arange(5)] * at
        raise Refused

    with pytest.raises(Refused):
        journal.write_parts(Accepted.of(update(np.arange(15))), 15, parts())
    assert journal.path.read_bytes() == before
    with pytest.raises(ValueError, match="has not the 120 bytes"):
        journal.write_parts(Accepted.of(update(np.arange(15))), 15, [np.arange(5)] * at)
    with pytest.raises(ValueError, match="has not the 120 bytes"):
        journal.write_parts(Accepted.of(update(np.arange(15))), 15, [np.arange(16)])
    assert journal.path.read_bytes() == before
    journal.write_parts(Accepted.of(update(np.arange(15))), 15, [np.arange(15)])
    journal.close()
    again, entries = JournalFile.reopen(journal.path, body=120)
    again.close()
    assert [entry.record.kind for entry in entries] == ["begun", "asking", "accepted"]


def test_a_body_that_is_gone_names_the_file(journal: JournalFile) -> None:
    body = stored(journal, update(np.arange(15))).body
    journal.path.write_bytes(journal.path.read_bytes()[: body.offset + 8])  # type: ignore[attr-defined]
    with pytest.raises(InstallationError, match=r"journal\.fedward"):
        body.read_into(np.empty(15, dtype=np.int64), 0)


# ----------------------------------------------------------------------------------------------------- the gatekeeper
def gatekeeper() -> Gatekeeper:
    keeper = Gatekeeper(STUDY, {7: Enrolment("north", STUDY.digest, 2, "1")})
    keeper.open_round(1)
    return keeper


BOUND = round(STUDY.aggregation.update_bound * (1 << 24)) * 2
WRONG = {
    "roster": update(np.zeros(SIZE, dtype=np.int64)),
    "site": update(np.zeros(SIZE, dtype=np.int64), site="south"),
    "weight": update(np.zeros(SIZE, dtype=np.int64), weight=3),
    "update": update(np.zeros(SIZE + 1, dtype=np.int64)),
    "bound": update(np.full(SIZE, BOUND + 1, dtype=np.int64)),
}


@pytest.mark.parametrize("check", WRONG)
def test_whole_or_in_parts_the_same_replies_are_refused_by_the_same_check(check: str) -> None:
    node, content = 8 if check == "roster" else 7, write_update(WRONG[check])
    found = []
    for look in (lambda k: k.check(node, content), lambda k: list(k.open(node, content)[1])):
        with pytest.raises(RejectedReply) as caught:
            look(gatekeeper())
        found.append(caught.value.check)
    assert found == [check, check]


def test_a_site_has_answered_once_its_last_part_has_come() -> None:
    keeper, content = gatekeeper(), write_update(update(np.full(SIZE, BOUND, dtype=np.int64)))
    keeper.open(7, content)  # looked at, and not read
    head, parts = keeper.open(7, content)
    assert head.values.size == 0
    assert (np.concatenate(list(parts)) == BOUND).all()
    with pytest.raises(RejectedReply, match="duplicate"):
        keeper.open(7, content)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, SIZE - 1), st.sampled_from([BOUND + 1, -BOUND - 1, (1 << 63) - 1, -(1 << 63)]))
def test_one_number_beyond_the_bound_refuses_the_reply_wherever_it_stands(place: int, value: int) -> None:
    values = np.zeros(SIZE, dtype=np.int64)
    values[place] = value
    with pytest.raises(RejectedReply, match="bound"):
        list(gatekeeper().open(7, write_update(update(values)))[1])
