"""A plan's arithmetic against independent sums, and the sentence exactly where its criterion holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import StudyError
from fedward_common.privacy import Spend, epsilon_of, noise_multiplier_for
from fedward_server.privacy_curve import Curve, Run, curve_of
from fedward_server.privacy_plan import ALTERNATIVES, Question, planned

QUESTION = Question({"north": 400, "south": 200}, 1.0, 1e-5, rounds=30, steps=1, rate=1.0, clip=1.0, parameters=200)


def test_noise_of_a_hospital_is_that_of_its_mean_gradient() -> None:
    plan = planned(QUESTION)

    assert plan.sigma == noise_multiplier_for(1.0, 1e-5, 1.0, 30)
    assert plan.spent <= 1.0
    north = plan.sites["north"]
    assert north.per_step == 400
    assert north.noise.coordinate == pytest.approx(plan.sigma / 400)
    assert north.noise.length == pytest.approx(plan.sigma / 400 * math.sqrt(200))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.sampled_from(["patients", "uniform"]))
def test_noise_of_the_federation_is_that_of_the_weighted_mean(patients: list[int], weighting: Any) -> None:
    """Against a simulation of what the centre does with unit noises, in one matrix product."""
    question = replace(
        QUESTION, patients={f"s{n}": p for n, p in enumerate(patients)}, weighting=weighting, sigma=25.0, rate=0.5
    )
    federation = planned(question).federation
    weights = (
        np.array(patients) / sum(patients) if weighting == "patients" else np.full(len(patients), 1 / len(patients))
    )
    noises = np.diag(25.0 / (0.5 * np.array(patients)))
    assert federation.coordinate == pytest.approx(float(np.linalg.norm(weights @ noises)))


def test_epsilon_alone_is_that_of_the_federations_noise() -> None:
    plan = planned(QUESTION)
    south = plan.sites["south"]

    sigma = plan.federation.coordinate * south.per_step
    assert south.alone_epsilon == epsilon_of([Spend(sigma, 1.0, 30)], 1e-5)
    assert plan.sites["north"].alone_epsilon < south.alone_epsilon
    assert plan.spent < south.alone_epsilon


def test_the_sentence_is_said_of_whom_it_is_true_and_of_nobody_else() -> None:
    plan = planned(QUESTION)

    assert plan.sites["south"].noise.length > 1 > plan.sites["north"].noise.length
    (sentence,) = plan.sentences
    assert sentence.startswith("south: a hospital with 200 patients cannot reach this alone")
    assert (plan.sites["north"].reaches, plan.sites["south"].reaches) == (True, False)


def test_where_all_have_enough_there_is_no_sentence() -> None:
    assert planned(replace(QUESTION, epsilon=8.0)).sentences == ()


def test_what_nobody_reaches_is_not_blamed_on_one_hospital() -> None:
    plan = planned(replace(QUESTION, parameters=1_000_000))

    assert {site.reaches for site in plan.sites.values()} == {None}
    (sentence,) = plan.sentences
    assert sentence.startswith("nobody reaches this")


@pytest.mark.parametrize("most", [0.5, 0.7, 1.4, 1.5])
def test_limit_decides_who_reaches(most: float) -> None:
    plan = planned(replace(QUESTION, most=most))
    said = {name for name in plan.sites if any(s.startswith(f"{name}:") for s in plan.sentences)}
    above = {name for name, site in plan.sites.items() if site.noise.length > most}
    assert said == (above if plan.federation.length <= most else set())


def test_alternatives_cost_less_noise_as_epsilon_grows() -> None:
    options = planned(QUESTION).options

    assert tuple(option.epsilon for option in options) == ALTERNATIVES
    assert [o.sigma for o in options] == sorted((o.sigma for o in options), reverse=True)
    assert [o.noise.length for o in options] == sorted((o.noise.length for o in options), reverse=True)
    assert options[0].out_of_reach == 1
    assert options[-1].out_of_reach == 0


def a_curve(south: float, spread: float = 0.01) -> Curve:
    runs = [
        Run(epsilon, 0.9 + sign * spread, {"north": 0.9, "south": south + sign * spread})
        for epsilon in (1.0, 4.0)
        for sign in (-1, 1)
    ]
    curve = curve_of(runs, "auroc")
    assert curve is not None
    return curve


@pytest.mark.parametrize(("south", "reaches"), [(0.8, False), (0.86, False), (0.88, True), (0.95, True)])
def test_measured_values_decide_before_the_rule_of_thumb(south: float, reaches: bool) -> None:  # noqa: FBT001
    plan = planned(QUESTION, a_curve(south))

    assert plan.sites["south"].reaches is reaches
    assert plan.sites["north"].reaches is True
    assert bool(plan.sentences) is not reaches
    assert all(f"measured alone {south:.3f}" in sentence for sentence in plan.sentences)


def test_one_seed_decides_nothing() -> None:
    one = curve_of([Run(1.0, 0.9, {"north": 0.9, "south": 0.95})], "auroc")

    plan = planned(QUESTION, one)

    assert plan.expected is not None
    assert plan.sites["south"].reaches is False
    assert "clipping bounds long" in plan.sentences[0]


def test_outside_the_curve_the_rule_of_thumb_decides_again() -> None:
    plan = planned(replace(QUESTION, epsilon=0.9), a_curve(0.95))

    assert plan.expected is None
    assert plan.sites["south"].reaches is False
    assert "clipping bounds long" in plan.sentences[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": 0.01}, "delta"),
        ({"rounds": 0}, "rounds"),
        ({"steps": 10_001}, "steps"),
        ({"rate": 1.1}, "rate"),
        ({"clip": 0.0}, "clip"),
        ({"parameters": 0}, "parameters"),
        ({"most": 0.0}, "most"),
        ({"patients": {}}, "patients"),
        ({"patients": {"north": 0}}, "north=0"),
    ],
)
def test_what_is_out_of_range_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(StudyError, match=f"out of range: {named}"):
        planned(replace(QUESTION, **change))


def test_budget_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(StudyError, match="no noise reaches"):
        planned(replace(QUESTION, epsilon=1e-5, delta=1e-9, rounds=10_000, steps=10_000))
