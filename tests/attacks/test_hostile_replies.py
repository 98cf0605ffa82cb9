"""One site of three lies in every round, and it costs nobody else anything.

The model equals, bit for bit, the one of a run to which the site was never connected; ``result.json`` says why.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedward_common.fixed_point import SCALE
from fedward_common.study import Study
from fedward_common.wire import PROTOCOL, Update, write_update
from tests.builders import small_study, update
from tests.doubles import (
    Behaviour,
    Exchange,
    Outcome,
    Rehearsal,
    Script,
    from_stranger,
    replaced,
    says,
    twice,
    with_array,
    with_header,
    with_record,
)

ATTACKER = "south"
HONEST = ("north", "west")
SITES = ("north", "south", "west")
HONEST_ROUNDS: list[str | tuple[str, int]] = [(site, round_) for site in HONEST for round_ in (1, 2, 3)]

Change = Callable[[RecordDict], RecordDict]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return Rehearsal(small_study(sites=list(SITES)), tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def without_attacker(rehearsal: Rehearsal) -> Outcome:
    return rehearsal.run(without=[ATTACKER])


@pytest.fixture(scope="module")
def everybody(rehearsal: Rehearsal) -> Outcome:
    return rehearsal.run()


def in_training(study: Study, behaviour: Behaviour) -> Script:
    """Return a script of an attacker that enrols honestly and then misbehaves in every round."""
    return {(ATTACKER, round_): behaviour for round_ in range(1, study.training.rounds + 1)}


def assert_costs_only_the_attacker(rehearsal: Rehearsal, reference: Outcome, behaviour: Behaviour, check: str) -> None:
    outcome = rehearsal.run(in_training(rehearsal.study, behaviour))
    result = outcome.result
    assert (result.status, len(result.rounds)) == ("degraded", rehearsal.study.training.rounds)
    for entry in result.rounds:
        assert entry.sites == HONEST
        assert entry.missing.keys() == {ATTACKER}
        assert entry.missing[ATTACKER].startswith(check)
    assert (result.sites[ATTACKER].status, result.sites[ATTACKER].rounds) == ("degraded", 0)
    assert result.sites[ATTACKER].reason == result.rounds[-1].missing[ATTACKER]
    assert all(result.sites[site].status == "completed" for site in HONEST)
    assert outcome.model == reference.model


def test_an_honest_third_site_would_have_changed_the_model(everybody: Outcome, without_attacker: Outcome) -> None:
    assert everybody.result.status == "completed"
    assert everybody.model != without_attacker.model


# ------------------------------------------------------------------------------------------------------ who, when, what
def test_reply_from_a_node_outside_the_roster_counts_for_nobody(rehearsal: Rehearsal, everybody: Outcome) -> None:
    forged = with_array(lambda values: values * 0 + 7)
    outcome = rehearsal.run(in_training(rehearsal.study, from_stranger(forged)))
    assert outcome.result.status == "completed"
    assert outcome.model == everybody.model


def test_second_reply_is_not_added_again(rehearsal: Rehearsal, everybody: Outcome) -> None:
    outcome = rehearsal.run(in_training(rehearsal.study, twice))
    assert outcome.result.status == "completed"
    assert outcome.model == everybody.model


def test_replayed_round_is_refused(rehearsal: Rehearsal) -> None:
    recorded: list[RecordDict] = []

    def replay(exchange: Exchange) -> Any:
        recorded.append(exchange.honest)
        return says(recorded[0])(exchange)

    outcome = rehearsal.run(in_training(rehearsal.study, replay))
    reference = rehearsal.run({(ATTACKER, round_): says(RecordDict()) for round_ in (2, 3)})
    assert [ATTACKER in entry.sites for entry in outcome.result.rounds] == [True, False, False]
    assert outcome.result.rounds[1].missing[ATTACKER] == "round: the reply is for round 1, this is round 2"
    assert outcome.result.sites[ATTACKER].status == "degraded"
    assert outcome.model == reference.model


def test_update_of_another_study_is_refused(rehearsal: Rehearsal, without_attacker: Outcome) -> None:
    other = with_header(digest=small_study(name="other").digest)
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(other), "study")


def test_update_in_another_sites_name_is_refused(rehearsal: Rehearsal, without_attacker: Outcome) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_header(site="north")), "site")


# -------------------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize("weight", [-9, 0, 10**15, 1 << 63, 41])
def test_weight_above_the_enrolled_one_or_of_nobody_is_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, weight: int
) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_header(weight=weight)), "weight")


@pytest.mark.parametrize("weight", [40.0, "40", True, None, [40]])
def test_weight_that_is_no_whole_number_is_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, weight: object
) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_header(weight=weight)), "weight")


# --------------------------------------------------------------------------------------------------------------- arrays
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(with_array(lambda v: v.astype(np.float32)), id="float32"),
        pytest.param(with_array(lambda v: v.astype(np.float64)), id="float64"),
        pytest.param(with_array(lambda v: np.full(v.shape, np.nan, np.float32)), id="NaN"),
        pytest.param(with_array(lambda v: np.full(v.shape, np.inf)), id="infinite"),
        pytest.param(with_array(lambda v: v.astype(">i8")), id="big-endian"),
        pytest.param(with_array(lambda v: v.astype(np.uint64)), id="unsigned"),
        pytest.param(with_array(lambda v: v.astype(np.complex128)), id="complex"),
        pytest.param(with_array(lambda v: v[:-1]), id="one-entry-short"),
        pytest.param(with_array(lambda v: np.append(v, v)), id="twice-as-long"),
        pytest.param(with_array(lambda v: v[:1]), id="broadcastable"),
        pytest.param(with_array(lambda v: np.array(v[0])), id="zero-dimensional"),
        pytest.param(with_array(lambda v: np.stack([v, v])), id="two-rows"),
        pytest.param(with_array(lambda v: v[:0]), id="empty"),
        pytest.param(with_array(lambda v: np.resize(v, 1 << 20)), id="eight-megabytes"),
        pytest.param(with_header(length=9), id="declared-too-long"),
        pytest.param(with_header(length=1 << 62), id="declared-endless"),
        pytest.param(with_header(length=[8]), id="declared-as-a-list"),
        pytest.param(with_header(length=8.0), id="declared-as-a-fraction"),
        pytest.param(with_header(dtype="<f8"), id="declared-as-float64"),
        pytest.param(with_header(dtype="int64"), id="declared-in-other-words"),
        pytest.param(with_header(vector=""), id="text-for-bytes"),
        pytest.param(with_header(vector=[bytes(64)]), id="a-list-of-bytes"),
        pytest.param(with_header(vector=[0] * 8), id="a-list-of-numbers"),
    ],
)
def test_update_of_another_type_or_shape_is_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, change: Change
) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(change), "")


def npy(header: str) -> bytes:
    """Return bytes that claim to be an NPY array, with a header of the attacker's own."""
    encoded = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded)) + encoded


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': (",  # NumPy's own reader dies of these with errors that are no ValueError
        "{'descr': (), 'fortran_order': False, 'shape': (8,)}",
        "-" * 900 + "1",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (8L,)}",
        "{'descr': 'O', 'fortran_order': False, 'shape': (8,)}",
        "__import__('os').getpid()",
        "",
    ],
)
def test_crafted_type_or_array_file_does_not_reach_a_parser(
    rehearsal: Rehearsal, without_attacker: Outcome, header: str
) -> None:
    for crafted in (with_header(vector=npy(header)), with_header(dtype=header), with_header(vector=header.encode())):
        assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(crafted), "")


def test_update_beyond_the_bound_is_refused(rehearsal: Rehearsal, without_attacker: Outcome) -> None:
    bound = int(rehearsal.study.aggregation.update_bound) * SCALE * 40
    for value in (bound + 1, -bound - 1, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        beyond = with_array(lambda v, value=value: np.full(v.shape, value))  # type: ignore[misc]
        assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(beyond), "bound")


def test_update_at_the_bound_is_accepted_from_an_honest_site(rehearsal: Rehearsal) -> None:
    bound = int(rehearsal.study.aggregation.update_bound) * SCALE * 40
    at_bound = replaced(with_array(lambda v: np.full(v.shape, -bound)))
    assert rehearsal.run(in_training(rehearsal.study, at_bound)).result.status == "completed"


# -------------------------------------------------------------------------------------------------------------- records
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(with_header(vector=None), id="no-update"),
        pytest.param(with_header(dtype=None), id="no-type"),
        pytest.param(with_header(length=None), id="no-length"),
        pytest.param(lambda _: RecordDict(), id="nothing"),
        pytest.param(with_record("fedward", ConfigRecord({})), id="no-entry"),
        pytest.param(with_record("fedward", MetricRecord({"weight": 40})), id="metrics-for-header"),
        pytest.param(with_record("fedward", ArrayRecord({"update": Array(np.zeros(8, np.int64))})), id="array-record"),
        pytest.param(lambda content: RecordDict({"header": content["fedward"]}), id="renamed-header"),
    ],
)
def test_missing_record_or_entry_is_refused(rehearsal: Rehearsal, without_attacker: Outcome, change: Change) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(change), "")


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(ConfigRecord({"patients": "Jane Doe"}), id="config"),
        pytest.param(MetricRecord({"age": [71.0, 64.0]}), id="metrics"),
        pytest.param(ArrayRecord({"rows": Array(np.zeros((3, 4)))}), id="arrays"),
        pytest.param(ConfigRecord({"vector": bytes(64)}), id="a-part"),
    ],
)
def test_extra_record_is_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, record: ConfigRecord | MetricRecord | ArrayRecord
) -> None:
    for name in ("extra", "part-1", "part-0"):  # an update of this size has no further parts
        assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_record(name, record)), "")


@pytest.mark.parametrize("value", ["Jane Doe", b"rows", [71.0, 64.0], 7])
def test_extra_entry_beside_the_update_is_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, value: object
) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_header(rows=value)), "")


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": float("nan")},
        {"loss": float("-inf")},
        {"loss": [0.5]},
        {"loss": True},
        {"loss": "0.5"},
        {"auroc": 0.5},
        {"loss": 0.5, "patient": 7},
    ],
)
def test_metric_that_no_site_may_send_is_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, metrics: dict[str, Any]
) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_header(**metrics)), "")


@pytest.mark.parametrize("protocol", [1, PROTOCOL + 1, -1, 1 << 62])
def test_another_protocol_is_refused(rehearsal: Rehearsal, without_attacker: Outcome, protocol: int) -> None:
    change = replaced(with_header(protocol=protocol))
    said = f"protocol_mismatch asked={protocol} limit={PROTOCOL}"
    assert_costs_only_the_attacker(rehearsal, without_attacker, change, said)


@pytest.mark.parametrize("steps", [-1, 1, 1 << 80])
def test_steps_in_a_study_without_privacy_are_refused(
    rehearsal: Rehearsal, without_attacker: Outcome, steps: int
) -> None:
    assert_costs_only_the_attacker(rehearsal, without_attacker, replaced(with_header(steps=steps)), "steps")


# -------------------------------------------------------------------------------------------------------- under privacy
def scripted(study: Study, **changes: Any) -> Behaviour:
    """Return a site that sends a fixed update with the right header, apart from `changes`."""

    def behaviour(exchange: Exchange) -> Any:
        number = SITES.index(exchange.site)
        values = update(study, site=exchange.site, round_=exchange.round, weight=30 + 10 * number, seed=number)
        fields = {name: getattr(values, name) for name in Update.__slots__}
        altered = {k: v(exchange) if callable(v) else v for k, v in changes.items()}
        return says(write_update(Update(**{**fields, **altered})))(exchange)

    return behaviour


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    # The noise is written out, which spares the calibration; the sites' own replies are scripted and equal in each run.
    dp = {"mechanism": "dp_sgd", "epsilon": 50.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 3.0}
    return Rehearsal(small_study(sites=list(SITES), privacy=dp), tmp_path_factory.mktemp("private"))


def private_script(study: Study, attack: Behaviour) -> Script:
    honest: Script = {
        (site, round_): scripted(study) for site in HONEST for round_ in range(1, study.training.rounds + 1)
    }
    return {**honest, **in_training(study, attack)}


@pytest.fixture(scope="module")
def private_reference(private: Rehearsal) -> Outcome:
    return private.run(private_script(private.study, scripted(private.study)), without=[ATTACKER])


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        pytest.param("metrics", {"metrics": {"loss": 0.5}}, id="metrics-under-privacy"),
        pytest.param("steps", {"steps": -1}, id="negative-steps"),
        pytest.param("steps", {"steps": 0}, id="no-steps"),
        pytest.param("steps", {"steps": lambda e: 2 * e.round + 1}, id="steps-above-what-is-possible"),
        pytest.param("steps", {"steps": 10**9}, id="a-billion-steps"),
    ],
)
def test_accounting_that_cannot_be_true_is_refused(
    private: Rehearsal, private_reference: Outcome, check: str, changes: dict[str, Any]
) -> None:
    outcome = private.run(private_script(private.study, scripted(private.study, **changes)))
    assert outcome.result.status == "degraded"
    assert [list(entry.missing) for entry in outcome.result.rounds] == [[ATTACKER]] * 3
    assert all(entry.missing[ATTACKER].startswith(check) for entry in outcome.result.rounds)
    assert outcome.model == private_reference.model


def test_a_lying_site_is_still_charged_for_every_round_that_it_was_asked(private: Rehearsal) -> None:
    outcome = private.run(private_script(private.study, scripted(private.study, steps=0)))
    sites = outcome.result.sites
    assert sites[ATTACKER].epsilon == sites["north"].epsilon
    assert (sites["north"].epsilon or 0) > 0
