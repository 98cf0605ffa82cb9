"""The gatekeeper's checks one by one; `tests/attacks/test_hostile_replies.py` shows what they do to a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedward_common.errors import RejectedReply
from fedward_common.fixed_point import SCALE, encode_weighted
from fedward_common.study import Study
from fedward_common.wire import Enrolment, write_update
from fedward_server.gatekeeper import Gatekeeper
from tests.builders import small_study, update
from tests.doubles import with_array

NODE, OTHER = 7, 8
DP = {"mechanism": "dp_sgd", "epsilon": 50.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 3.0}


def gatekeeper(study: Study, *, round_: int = 1, patients: int = 40) -> Gatekeeper:
    enrolments = {
        NODE: Enrolment("north", study.digest, patients, "1"),
        OTHER: Enrolment("south", study.digest, patients, "1"),
    }
    gate = Gatekeeper(study, enrolments)
    gate.open_round(round_)
    return gate


def reply(study: Study, *, round_: int = 1, **changes: Any) -> RecordDict:
    return write_update(replace(update(study, round_=round_), **changes))


def refused(gate: Gatekeeper, content: RecordDict, *, node: int = NODE) -> str:
    with pytest.raises(RejectedReply) as caught:
        gate.check(node, content)
    return caught.value.check


@pytest.fixture
def study() -> Study:
    return small_study()


@pytest.fixture
def private() -> Study:
    return small_study(privacy=DP)


def test_a_valid_reply_comes_back_as_it_was_sent(study: Study) -> None:
    sent = update(study)
    taken = gatekeeper(study).check(NODE, write_update(sent))
    assert (taken.site, taken.round, taken.weight, taken.digest) == ("north", 1, 40, study.digest)
    np.testing.assert_array_equal(taken.values, sent.values)


def test_reply_from_a_node_outside_the_roster_is_refused(study: Study) -> None:
    assert refused(gatekeeper(study), reply(study), node=99) == "roster"


def test_second_reply_is_refused(study: Study) -> None:
    gate = gatekeeper(study)
    gate.check(NODE, reply(study))
    assert refused(gate, reply(study)) == "duplicate"


def test_a_refused_reply_does_not_use_up_the_right_to_one(study: Study) -> None:
    gate = gatekeeper(study)
    assert refused(gate, reply(study, weight=41)) == "weight"
    assert gate.check(NODE, reply(study)).weight == 40


def test_a_new_round_takes_one_reply_of_everybody_again(study: Study) -> None:
    gate = gatekeeper(study)
    gate.check(NODE, reply(study))
    gate.open_round(2)
    assert gate.check(NODE, reply(study, round_=2)).round == 2


@pytest.mark.parametrize("round_", [0, 1, 3, -2, 1 << 40])
def test_replayed_or_foreign_round_is_refused(study: Study, round_: int) -> None:
    assert refused(gatekeeper(study, round_=2), write_update(replace(update(study), round=round_))) == "round"


def test_other_studys_digest_is_refused(study: Study) -> None:
    assert refused(gatekeeper(study), reply(study, digest=small_study(seed=2).digest)) == "study"


def test_another_sites_name_is_refused(study: Study) -> None:
    assert refused(gatekeeper(study), reply(study, site="south")) == "site"


@pytest.mark.parametrize("weight", [-9, 0, 41, 10**15])
def test_weight_above_the_enrolled_one_or_of_nobody_is_refused(study: Study, weight: int) -> None:
    assert refused(gatekeeper(study), reply(study, weight=weight)) == "weight"


@pytest.mark.parametrize("weight", [1, 39])
def test_a_site_whose_patients_opted_out_since_the_roll_call_is_heard(study: Study, weight: int) -> None:
    taken = gatekeeper(study).check(NODE, write_update(update(study, weight=weight)))

    assert taken.weight == weight


def test_less_weight_lends_no_stronger_voice(study: Study) -> None:
    """An entry that 40 patients may have is out of bounds for one: the mean stays within the bound of a change."""
    bound = round(study.aggregation.update_bound * SCALE)
    most = np.full(update(study).values.shape, 40 * bound, dtype=np.int64)

    assert gatekeeper(study).check(NODE, reply(study, values=most)).weight == 40
    assert refused(gatekeeper(study), reply(study, values=most, weight=39)) == "bound"
    assert refused(gatekeeper(study), reply(study, values=most // 40 + 1, weight=1)) == "bound"


def test_weight_cannot_shrink_where_every_site_counts_the_same() -> None:
    study = small_study(aggregation={"weighting": "uniform"})

    assert refused(gatekeeper(study), reply(study, weight=0)) == "weight"
    assert refused(gatekeeper(study), reply(study, weight=2)) == "weight"


@pytest.mark.parametrize(
    ("rule", "patients", "expected"),
    [
        ({"weighting": "patients"}, 40, 40),
        ({"weighting": "patients", "max_weight": 25}, 40, 25),
        ({"weighting": "patients"}, 1 << 40, 1_000_000),
        ({"weighting": "uniform"}, 40, 1),
    ],
)
def test_weight_follows_the_rule_and_its_cap(rule: dict[str, Any], patients: int, expected: int) -> None:
    study = small_study(aggregation=rule)
    gate = gatekeeper(study, patients=patients)
    assert gate.expected_weight(Enrolment("north", study.digest, patients, "1")) == expected
    assert gate.check(NODE, write_update(update(study, weight=expected))).weight == expected


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(8, dtype=np.float32),
        np.full(8, np.nan, dtype=np.float32),
        np.zeros(7, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        np.zeros((8, 2), dtype=np.int64),
    ],
    ids=["float32", "NaN", "too-short", "broadcastable", "two-columns"],
)
def test_vector_of_another_dtype_or_length_is_refused(study: Study, array: np.ndarray[Any, Any]) -> None:
    assert refused(gatekeeper(study), with_array(lambda _: array)(reply(study))) == "update"


def test_missing_record_or_vector_is_refused(study: Study) -> None:
    header = dict(reply(study).config_records["fedward"])
    del header["vector"]
    assert refused(gatekeeper(study), RecordDict({"fedward": ConfigRecord(header)})) == "update"
    assert refused(gatekeeper(study), RecordDict()) == "protocol"


def test_extra_record_is_refused(study: Study) -> None:
    assert refused(gatekeeper(study), RecordDict({**reply(study), "rows": ArrayRecord()})) == "names"


@pytest.mark.parametrize("bound", [64.0, 1.0, 0.1, 1 / 3, 1e-3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound_lets_through_what_an_honest_site_may_send_and_nothing_more(bound: float, sign: int) -> None:
    study = small_study(aggregation={"update_bound": bound})
    largest = np.float32(bound) if float(np.float32(bound)) <= bound else np.nextafter(np.float32(bound), np.float32(0))
    honest = encode_weighted(np.full(8, sign * largest, dtype=np.float32), 40, bound=bound)
    sent = replace(update(small_study()), digest=study.digest, values=honest)
    assert gatekeeper(study).check(NODE, write_update(sent)).weight == 40
    beyond = replace(sent, values=honest + sign * 40)
    assert refused(gatekeeper(study), write_update(beyond)) == "bound"


@pytest.mark.parametrize("extreme", [np.iinfo(np.int64).min, np.iinfo(np.int64).max, 65 * SCALE * 40])
def test_update_beyond_the_bound_is_refused(study: Study, extreme: int) -> None:
    values = update(study).values.copy()
    values[3] = extreme
    assert refused(gatekeeper(study), reply(study, values=values)) == "bound"


@pytest.mark.parametrize("steps", [-1, 1, 2])
def test_steps_without_privacy_are_refused(study: Study, steps: int) -> None:
    assert refused(gatekeeper(study), reply(study, steps=steps)) == "steps"


@pytest.mark.parametrize(("round_", "steps"), [(1, 0), (1, 1), (1, 3), (3, 7), (3, 1), (2, -2), (2, 10**18)])
def test_steps_that_no_ledger_can_hold_are_refused(private: Study, round_: int, steps: int) -> None:
    gate = gatekeeper(private, round_=round_)
    assert refused(gate, reply(private, round_=round_, steps=steps)) == "steps"


@pytest.mark.parametrize(("round_", "steps"), [(1, 2), (3, 2), (3, 4), (3, 6)])
def test_steps_of_a_site_that_missed_rounds_are_accepted(private: Study, round_: int, steps: int) -> None:
    assert gatekeeper(private, round_=round_).check(NODE, reply(private, round_=round_, steps=steps)).steps == steps


def test_metrics_under_privacy_are_refused(private: Study) -> None:
    assert refused(gatekeeper(private), reply(private, metrics={"loss": 0.5})) == "metrics"


@pytest.mark.parametrize(("loss", "taken"), [(0.0, True), (0.5, True), (2.0, True), (-0.01, False), (2.01, False)])
def test_a_loss_that_is_paid_for_is_taken_within_its_bounds(loss: float, *, taken: bool) -> None:
    study = small_study(privacy=DP | {"loss": "noised", "loss_bound": 2.0})
    content = reply(study, metrics={"loss": loss})
    if taken:
        assert gatekeeper(study).check(NODE, content).metrics == {"loss": loss}
    else:
        assert refused(gatekeeper(study), content) == "metrics"


def test_the_loss_is_taken_where_it_costs_nothing(study: Study) -> None:
    assert gatekeeper(study).check(NODE, reply(study, metrics={"loss": 0.5})).metrics == {"loss": 0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metric_that_is_not_finite_is_refused(study: Study, value: float) -> None:
    assert refused(gatekeeper(study), reply(study, metrics={"loss": value})) == "metrics"
