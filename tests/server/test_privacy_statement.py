"""``privacy.json`` item by item, as NIST SP 800-226 asks; figures against formulas that share no code with ours."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import norm

from fedward_common.privacy import Spend, epsilon_of
from fedward_common.privacy_sites import across_sites
from fedward_common.study import Study
from fedward_server.privacy_figures import certainty, composed, for_group
from fedward_server.privacy_statement import PrivacyStatement, Promise, dump_statement, statement_of
from fedward_server.result import Baselines, Estimate, ModelFile, RoundResult, RunResult, SiteResult, StudyRef
from fedward_server.statement_page import page_of
from fedward_server.wording import bound, percent_bound
from tests.builders import contract, small_study

DELTA = 1e-4
DP = {"mechanism": "dp_sgd", "epsilon": 8.0, "delta": DELTA, "clip_norm": 0.5, "noise_multiplier": 4.0}
SAMPLED = {"sampling_rate": 0.1, "local_steps": 20}
FAILED: dict[str, Any] = {"status": "failed", "reason": "x", "central": {}, "model": None}
HOSTILE = "<script>\u202e\"'&{{7*7}}\x00"


def study_of(*, privacy: dict[str, Any] | None = None, **changes: Any) -> Study:
    return small_study(privacy=DP | (privacy or {}), **changes)


def spent(study: Study, steps: int, **changes: Any) -> SiteResult:
    """Return a hospital of `study` that spent `steps`."""
    unit = Spend(4.0, study.training.sampling_rate, steps)
    values = {"patients": 40, "weight": 40, "rounds": 3, "steps": steps, "status": "completed"}
    return SiteResult(**(values | {"epsilon": epsilon_of([unit], DELTA), "delta": DELTA} | changes))


def result_of(study: Study, sites: dict[str, SiteResult] | None = None, **changes: Any) -> RunResult:
    """Return the result of a completed deployed run, in which each hospital took all steps unless `sites` says else."""
    rate = Estimate(value=0.9, low=0.8, high=0.95)
    values: dict[str, Any] = {
        "study": StudyRef(name=study.name, digest=study.digest), "engine": "deployed", "seed": 1,
        "status": "completed", "started_at": "2026-11-23T12:54:32+00:00", "seconds": 4.5,
        "versions": {"fedward": "0.1.0", "dp-accounting": "0.6.0"}, "privacy": None, "central": {"auroc": rate},
        "sites": dict.fromkeys(study.sites, spent(study, study.total_steps)) if sites is None else sites,
        "rounds": (RoundResult(round=1, sites=study.sites, seconds=0.2),),
        "model": ModelFile(file="model.safetensors", sha256="ab" * 32, parameters=8),
    }  # fmt: skip
    return RunResult(**(values | changes))


def promise_of(study: Study, sites: dict[str, SiteResult] | None = None, **changes: Any) -> Promise:
    promise = statement_of(study, result_of(study, sites, **changes)).guarantee
    assert promise is not None
    return promise


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return δ(ε) of the Gaussian mechanism with sensitivity over noise `mu` (Balle and Wang 2018, theorem 8)."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


def known(value: float | None) -> float:
    assert value is not None
    return value


# ----------------------------------------------------------------------------------------------- privacy parameters
def test_epsilon_and_delta_are_those_promised_and_those_spent_to_the_last_digit() -> None:
    study = study_of()
    sites = {"north": spent(study, 6), "south": spent(study, 4)}
    written = json.loads(dump_statement(statement_of(study, result_of(study, sites))))["guarantee"]
    assert written["promised"] == {"epsilon": 8.0, "delta": DELTA}
    assert written["spent"]["worst_site"] == {"epsilon": sites["north"].epsilon, "delta": DELTA}
    assert written["spent"]["sites"]["south"] == {"steps": 4, "epsilon": sites["south"].epsilon, "delta": DELTA}


def test_what_a_site_spent_is_what_a_formula_on_paper_says() -> None:
    """Six sums over everybody with σ = 4 are one Gaussian mechanism with μ = √6 / 4."""
    worst = known(promise_of(study_of()).spent.worst_site.epsilon)
    assert gaussian_delta(math.sqrt(6) / 4, worst) == pytest.approx(DELTA, rel=1e-6)


def test_no_finite_epsilon_at_one_hospital_is_none_for_the_worst() -> None:
    study = study_of()
    sites = {"north": spent(study, 6), "south": spent(study, 6, epsilon=math.inf)}
    promise = promise_of(study, sites)
    assert (
        promise.spent.worst_site.epsilon is promise.spent.two_hospitals.epsilon is promise.spent.bets[0].after is None
    )
    assert {g.epsilon for g in promise.spent.groups.values()} == {None}
    assert "No finite epsilon is known" in statement_of(study, result_of(study, sites)).summary


# ------------------------------------------------------------------------------------------------ unit and neighbours
@pytest.mark.parametrize(
    ("column", "most", "asked", "views", "records", "words"),
    [
        (None, 8, None, 1, 1, "each row counts as one patient; a step clips its gradient"),
        ("patient", 1, None, 1, 1, "all rows of a hospital that agree in patient; a step clips its gradient"),
        ("patient", 8, None, 1, 8, "of these a step takes at most 8 and averages them before the one clip"),
        ("patient", 8, 3, 1, 3, "of these a step takes at most 3 and averages them before the one clip"),
        ("patient", 4, 9, 1, 4, "of these a step takes at most 4 and averages them before the one clip"),
    ],
)
def test_unit_of_privacy_is_the_patient_and_says_which_records_are_averaged(
    column: str | None, most: int, asked: int | None, views: int, records: int, words: str
) -> None:
    cohort = {"patient": column, "max_rows_per_patient": most}
    unit = promise_of(study_of(cohort=cohort, training={"records_per_patient": asked, "views": views})).unit
    assert (unit.unit, unit.identified_by, unit.records_per_step) == ("patient", column, records)
    assert unit.meaning.endswith(words)


def test_views_of_a_picture_are_averaged_before_the_one_clip() -> None:
    image = {"kind": "image", "unit": "grey level", "height": 2, "width": 2, "minimum": 0, "maximum": 255}
    cohort = {"columns": contract()["cohort"]["columns"] | {"scan": image}}
    unit = promise_of(study_of(cohort=cohort, training={"views": 4})).unit
    assert unit.views == 4
    assert "at most 1, each seen in 4 random views, and averages them before the one clip" in unit.meaning


def test_neighbouring_relation_is_zero_out_and_sizes_are_public() -> None:
    study = study_of()
    neighbours = promise_of(study).neighbours
    assert neighbours.relation == study.contract()["privacy"]["adjacency"]
    assert neighbours.public[0] == "the number of patients at each hospital"


# -------------------------------------------------------------------------------------------------------- composition
@pytest.mark.parametrize("training", [{}, SAMPLED], ids=["everybody", "sampled"])
def test_patient_of_two_hospitals_has_more_than_each_and_at_most_the_sum(training: dict[str, Any]) -> None:
    study = study_of(training=training)
    promise = promise_of(study)
    each = [known(site.epsilon) for site in promise.spent.sites.values()]
    assert max(each) < known(promise.spent.two_hospitals.epsilon) <= sum(each)
    assert promise.spent.all_hospitals == promise.spent.two_hospitals


def test_patient_of_two_hospitals_is_as_if_one_had_taken_the_steps_of_both() -> None:
    names = ["a", "b", "c"]
    study = study_of(sites=names)
    sites = {name: spent(study, steps) for name, steps in zip(names, (2, 6, 4), strict=True)}
    figures = promise_of(study, sites).spent
    assert gaussian_delta(math.sqrt(10) / 4, known(figures.two_hospitals.epsilon)) == pytest.approx(DELTA, rel=1e-6)
    assert gaussian_delta(math.sqrt(12) / 4, known(figures.all_hospitals.epsilon)) == pytest.approx(DELTA, rel=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_patient_of_several_hospitals_costs_what_the_accountant_says_of_any_two_and_of_all(rate: float) -> None:
    """`across_sites` composes whatever each hospital spent; a study's hospitals differ in their steps alone."""
    names = ["a", "b", "c", "d"]
    study = study_of(sites=names, training={"sampling_rate": rate, "local_steps": 20})
    counts = dict(zip(names, (20, 60, 40, 0), strict=True))
    theirs = across_sites({name: [Spend(4.0, rate, count)] for name, count in counts.items()}, DELTA)
    figures = promise_of(study, {name: spent(study, count) for name, count in counts.items()}).spent
    assert figures.worst_site.epsilon == pytest.approx(theirs.worst_of_one, rel=1e-9)
    assert figures.two_hospitals.epsilon == pytest.approx(theirs.any_two, rel=1e-3)
    assert figures.all_hospitals.epsilon == pytest.approx(theirs.everywhere, rel=1e-9)


@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=6))
@example(steps=[0])
def test_more_hospitals_never_cost_a_patient_less(steps: list[int]) -> None:
    study = study_of(sites=[f"h{n}" for n in range(max(2, len(steps)))])
    sites = {f"h{n}": spent(study, count) for n, count in enumerate(steps)}
    figures = promise_of(study, sites).spent
    chain = [figures.worst_site, figures.two_hospitals, figures.all_hospitals]
    assert all(known(a.epsilon) <= known(b.epsilon) for a, b in pairwise(chain))
    assert known(figures.worst_site.epsilon) <= known(figures.groups[2].epsilon) <= known(figures.groups[4].epsilon)


def test_result_of_an_older_release_counts_all_of_the_study_s_steps() -> None:
    study = study_of()
    sites = {
        "north": spent(study, 2).model_copy(update={"steps": None}),
        "south": SiteResult(status="excluded", epsilon=0.0, delta=DELTA),
    }
    figures = promise_of(study, sites).spent
    assert {name: site.steps for name, site in figures.sites.items()} == {"north": study.total_steps, "south": 0}
    assert figures.two_hospitals.epsilon == epsilon_of([Spend(4.0, 1.0, study.total_steps)], DELTA)


def test_no_composed_epsilon_is_below_what_a_site_says_it_spent() -> None:
    study = study_of()
    figures = promise_of(study, dict.fromkeys(study.sites, spent(study, 6, epsilon=77.0))).spent
    assert (figures.worst_site.epsilon, figures.two_hospitals.epsilon, figures.groups[2].epsilon) == (77.0, 77.0, 77.0)


# ------------------------------------------------------------------------------------------------------------- groups
def test_group_for_which_no_bound_is_known_is_none_and_says_so() -> None:
    assert for_group(Spend(0.4, 0.5, 60), 4, DELTA) is None
    study = study_of(privacy={"epsilon": 100.0, "noise_multiplier": 0.4}, training={"sampling_rate": 0.5})
    worst = spent(study, 60, epsilon=99.0)
    page = page_of(statement_of(study, result_of(study, {"north": worst, "south": worst})))
    assert ("Four patients of one hospital, at most", "no bound is known") in page.facts["The terms of the promise"]


def test_groups_and_cross_check_are_those_of_the_hospital_that_spent_most() -> None:
    study = study_of()
    promise = promise_of(study, {"north": spent(study, 2), "south": spent(study, 6)})
    assert promise.spent.groups[4].epsilon == for_group(Spend(4.0, 1.0, 6), 4, DELTA)
    assert known(promise.account.cross_check) > known(promise.spent.worst_site.epsilon)


def test_two_values_of_a_record_are_as_far_apart_as_two_patients() -> None:
    figures = promise_of(study_of(training=SAMPLED)).spent
    assert figures.two_values == figures.groups[2]


# --------------------------------------------------------------------------------------------------------------- bets
def test_bets_are_those_of_the_worst_hospital_and_of_two() -> None:
    figures = promise_of(study_of()).spent
    one, two = known(figures.worst_site.epsilon), known(figures.two_hospitals.epsilon)
    assert [bet.before for bet in figures.bets] == [0.01, 0.1, 0.5]
    assert [bet.after for bet in figures.bets] == [certainty(p, one) for p in (0.01, 0.1, 0.5)]
    assert [bet.after_two_hospitals for bet in figures.bets] == [certainty(p, two) for p in (0.01, 0.1, 0.5)]


# ---------------------------------------------------------------------------------------- mechanism, sampling, numbers
def test_mechanism_has_every_number_of_the_study() -> None:
    study = study_of(training=SAMPLED)
    (mechanism,) = promise_of(study).mechanisms
    assert mechanism.name == "poisson_sampled_gaussian_sum"
    assert (mechanism.noise_multiplier, mechanism.gradient_noise_multiplier, mechanism.sensitivity) == (4.0, 4.0, 0.5)
    assert (mechanism.sampling_rate, mechanism.steps_per_round, mechanism.rounds) == (0.1, 20, 3)
    assert (mechanism.loss_share, mechanism.loss_bound, mechanism.loss_noise_multiplier) == (None, None, None)
    assert len(mechanism.releases) == 1


@given(share=st.floats(0.001, 0.999))
def test_gradient_and_loss_of_a_step_cost_together_what_is_accounted(share: float) -> None:
    study = study_of(privacy={"loss": "noised", "loss_share": share, "loss_bound": 3.0})
    (mechanism,) = promise_of(study).mechanisms
    both = known(mechanism.gradient_noise_multiplier) ** -2 + known(mechanism.loss_noise_multiplier) ** -2
    assert both == pytest.approx(4.0**-2, rel=1e-12)
    assert (mechanism.loss_share, mechanism.loss_bound, len(mechanism.releases)) == (share, 3.0, 2)


def test_sampling_is_poisson_by_patient_with_the_public_rate() -> None:
    sampling = promise_of(study_of(training=SAMPLED)).sampling
    assert (sampling.kind, sampling.unit, sampling.rate) == ("poisson", "patient", 0.1)
    assert "empty draw is noised" in sampling.meaning


@pytest.mark.parametrize(("tier", "source"), [("gaussian", "no cipher"), ("discrete_gaussian", "AES-256 in counter")])
def test_random_numbers_are_the_operating_system_s_in_the_tier_that_was_asked_for(tier: str, source: str) -> None:
    promise = promise_of(study_of(privacy={"noise": tier}))
    assert promise.randomness["tier"] == tier
    assert source in promise.randomness["noise"]
    assert promise.mechanisms[0].name == f"poisson_sampled_{tier}_sum"
    assert all("os.urandom" in promise.randomness[key] for key in ("noise", "sampling"))


def test_trust_model_has_the_hospital_trusted_and_everybody_else_not() -> None:
    study = study_of()
    trusted = {who: role.startswith("trusted") for who, role in promise_of(study).trust_model.items()}
    assert [who for who, is_trusted in trusted.items() if is_trusted] == ["the patient’s hospital"]
    assert {"the coordinator", "other hospitals", "readers of the released model"} <= set(trusted)
    assert statement_of(study, result_of(study)).secure_aggregation == "none"


def test_preprocessing_is_public() -> None:
    assert "nothing that touches training was estimated from patients’ records" in promise_of(study_of()).preprocessing


# --------------------------------------------------------------------------------------------------------- accountant
@pytest.mark.parametrize("training", [{}, SAMPLED], ids=["everybody", "sampled"])
def test_accountant_is_checked_by_another_library_whose_bound_is_never_below(training: dict[str, Any]) -> None:
    promise = promise_of(study_of(training=training))
    worst = known(promise.spent.worst_site.epsilon)
    assert worst < known(promise.account.cross_check) < 1.35 * worst
    assert (promise.account.version, promise.account.cross_check_version) == ("0.1.0", "0.6.0")


# ------------------------------------------------------------------------------------------ auxiliary outputs, failures
def released(study: Study, result: RunResult) -> dict[str, str]:
    return {entry.what: entry.protection for entry in statement_of(study, result).released}


def test_released_is_every_kind_that_left_with_its_protection() -> None:
    study = study_of()
    assert released(study, result_of(study)) == {
        "updates": "noised",
        "models of the rounds": "post_processing",
        "released model": "post_processing",
        "cohort sizes": "exact",
        "step counts": "independent",
        "refusals": "exact",
        "timings": "exact",
        "hold-out figures": "exact",
    }


def test_auxiliary_loss_is_withheld_or_noised_as_the_study_says() -> None:
    kept, sent = study_of(), study_of(privacy={"loss": "noised"})
    assert "losses in training" in statement_of(kept, result_of(kept)).withheld
    assert "losses in training" not in statement_of(sent, result_of(sent)).withheld
    assert released(sent, result_of(sent))["losses"] == "noised"
    assert "losses" not in released(kept, result_of(kept))


def test_failed_run_has_spent_and_released_no_model() -> None:
    study = study_of()
    statement = statement_of(study, result_of(study, **FAILED, rounds=()))
    assert statement.guarantee is not None
    assert known(statement.guarantee.spent.worst_site.epsilon) > 0
    assert "No model was released." in statement.summary
    assert statement.model is None
    assert not {"released model", "models of the rounds", "hold-out figures"} & {e.what for e in statement.released}
    assert "updates" in {entry.what for entry in statement.released}


def test_run_that_never_began_spent_nothing_and_lets_nobody_bet() -> None:
    study = study_of()
    idle = SiteResult(status="excluded", reason="not_connected", steps=0, epsilon=0.0, delta=DELTA)
    result = result_of(study, dict.fromkeys(study.sites, idle), **FAILED, rounds=())
    statement = statement_of(study, result)
    assert statement.summary == "Nothing was spent: no hospital was asked for a round. No model was released."
    assert set(released(study, result)) == {"step counts", "refusals", "timings"}
    assert page_of(statement).bets == ()


# --------------------------------------------------------------------------------------------------------- not covered
def topics(study: Study, result: RunResult) -> list[str]:
    return [gap.topic for gap in statement_of(study, result).not_covered]


def test_not_covered_names_sizes_groups_side_channels_and_other_studies() -> None:
    study = study_of()
    assert topics(study, result_of(study)) == [
        "How many patients",
        "Patients with several rows",
        "A patient treated at several of the hospitals",
        "Groups and relatives",
        "What is true of patients in general",
        "Patients of the central hold-out",
        "Other studies on the same records",
        "Refusals",
        "Timing",
        "The rounding of numbers in computers",
        "Inside a hospital",
    ]


def test_not_covered_follows_study_and_run() -> None:
    known_by = study_of(cohort={"patient": "patient"})
    assert "Patients with several identifiers" in topics(known_by, result_of(known_by))
    assert "Patients with several rows" not in topics(known_by, result_of(known_by))
    assert "Patients of the central hold-out" not in topics(known_by, result_of(known_by, **FAILED))
    strict = study_of(privacy={"noise": "discrete_gaussian"})
    texts = {gap.topic: gap.text for gap in statement_of(strict, result_of(strict)).not_covered}
    assert "Noise is drawn exactly" in texts["The rounding of numbers in computers"]
    assert "discrete_gaussian" not in texts["The rounding of numbers in computers"]


@pytest.mark.parametrize(("engine", "simulated"), [("local", True), ("ray", True), ("deployed", False)])
def test_simulated_hospitals_are_called_simulated(engine: str, simulated: bool) -> None:  # noqa: FBT001  (a case)
    study = study_of()
    statement = statement_of(study, result_of(study, engine=engine))
    assert (statement.engine, statement.simulation) == (engine, simulated)


def test_models_for_comparison_are_not_private_and_give_a_simulation_away() -> None:
    study = study_of()
    statement = statement_of(study, result_of(study, baselines=Baselines(pooled={})))
    assert statement.simulation
    (text,) = [gap.text for gap in statement.not_covered if gap.topic == "The models for comparison"]
    assert text.endswith("their figures are not private.")
    assert "The models for comparison" in topics(study, result_of(study, baselines=Baselines(local={"north": {}})))


# ------------------------------------------------------------------------------------------------------------- without
@pytest.mark.parametrize(
    ("privacy", "said"),
    [(None, "says nothing about privacy"), ({"mechanism": "none"}, "was written without differential privacy")],
)
def test_without_differential_privacy_it_says_so_and_holds_no_epsilon(privacy: Any, said: str) -> None:
    study = small_study(privacy=privacy)
    site = SiteResult(patients=40, weight=40, rounds=3, status="completed")
    statement = statement_of(study, result_of(study, dict.fromkeys(study.sites, site)))
    text = dump_statement(statement).decode()
    assert statement.summary.startswith("No differential privacy: ")
    assert (statement.differential_privacy, statement.guarantee) == (False, None)
    assert said in statement.not_covered[0].text
    assert not any(word in text for word in ("epsilon", "ε", "delta", "δ", "noised"))
    assert {e.protection for e in statement.released} == {"none"}
    assert {"updates", "losses", "released model"} <= {e.what for e in statement.released}
    assert not page_of(statement).private
    assert page_of(statement).facts == {}


# ----------------------------------------------------------------------------------------------------- odd and hostile
def test_it_is_the_same_bytes_each_time_and_reads_back_equal() -> None:
    study = study_of(training=SAMPLED)
    written = dump_statement(statement_of(study, result_of(study)))
    again = RunResult.model_validate_json(result_of(study).model_dump_json())
    assert dump_statement(statement_of(Study.of(study.contract()), again)) == written
    assert dump_statement(PrivacyStatement.model_validate_json(written)) == written
    assert written.endswith(b"}\n")


def test_it_names_study_model_and_versions() -> None:
    study = study_of()
    written = json.loads(dump_statement(statement_of(study, result_of(study))))
    assert written["schema_version"] == 1
    assert written["study"]["digest"] == study.digest
    assert written["model"]["sha256"] == "ab" * 32
    assert written["versions"] == {"fedward": "0.1.0", "dp-accounting": "0.6.0"}
    assert written.keys() == {
        "schema_version", "study", "status", "engine", "simulation", "differential_privacy", "summary", "guarantee",
        "secure_aggregation", "released", "withheld", "not_covered", "versions", "model",
    }  # fmt: skip


def test_hostile_names_are_text_and_change_no_figure() -> None:
    study = study_of()
    sites = {HOSTILE: spent(study, 6), "south": spent(study, 6)}
    hostile = result_of(study, sites, engine=HOSTILE, reason=HOSTILE, versions={HOSTILE: HOSTILE})
    written = json.loads(dump_statement(statement_of(study, hostile)))
    assert written["guarantee"]["spent"]["two_hospitals"] == (
        promise_of(study).spent.two_hospitals.model_dump(mode="json")
    )
    assert set(written["guarantee"]["spent"]["sites"]) == {HOSTILE, "south"}


def test_no_hospital_and_no_noise_are_no_error() -> None:
    assert promise_of(study_of(), {}).spent.worst_site.epsilon == 0.0
    uncalibrated = study_of(privacy={"noise_multiplier": None})
    sites = {name: SiteResult(status="completed", rounds=1, epsilon=3.0, delta=DELTA) for name in uncalibrated.sites}
    promise = promise_of(uncalibrated, sites)
    assert promise.spent.worst_site.epsilon == 3.0
    assert promise.spent.two_hospitals.epsilon is promise.account.cross_check is None
    assert (
        "not calibrated"
        in dict(page_of(statement_of(uncalibrated, result_of(uncalibrated, sites))).facts["How it is kept"])[
            "Mechanism"
        ]
    )


def test_four_thousand_hospitals_are_one_composition() -> None:
    names = [f"h{n}" for n in range(4096)]
    study = study_of(sites=names)
    figures = promise_of(study).spent
    assert composed(Spend(4.0, 1.0, 0), [6] * 4096, DELTA) == figures.all_hospitals.epsilon
    assert len(figures.sites) == 4096


# ------------------------------------------------------------------------------------------------------------ the page
@given(value=st.floats(1e-9, 1e6))
@example(value=7.9911)
@example(value=1.001)
def test_page_shows_no_epsilon_smaller_than_it_is(value: float) -> None:
    shown = bound(value)
    mantissa, _, power = shown.replace(",", "").partition(" × 10")
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
    assert Decimal(repr(value)) <= Decimal(mantissa).scaleb(exponent) <= Decimal(repr(value)) * Decimal("1.011")


@given(value=st.floats(1e-6, 1.0))
@example(value=0.999)
@example(value=0.9985)
def test_page_shows_no_certainty_smaller_than_it_is(value: float) -> None:
    shown = percent_bound(value)
    if shown == "over 99.9 %":
        assert value > 0.999
    elif "×" not in shown:
        assert Decimal(shown.removesuffix(" %")) / 100 >= Decimal(repr(value)) * (1 - Decimal("1e-15"))


def test_page_has_the_terms_the_means_and_whom_it_trusts() -> None:
    study = study_of(training=SAMPLED, privacy={"loss": "noised"})
    page = page_of(statement_of(study, result_of(study, engine="local")))
    terms, means = dict(page.facts["The terms of the promise"]), dict(page.facts["How it is kept"])
    spent_two = known(promise_of(study).spent.two_hospitals.epsilon)
    assert terms["Allowed by the study"] == "ε = 8.00, δ = 0.0001"
    assert terms["Patient of two hospitals"] == f"ε = {bound(spent_two)}, δ = 0.0001"
    assert "3 rounds of 20 steps." in means["Mechanism"]
    assert "σ = 4, in units of the bound 0.5" in means["Mechanism"]
    assert "at most 2 nats; the loss takes 5 % of the step’s privacy" in means["Mechanism"]
    assert "Probability 0.1." in means["Sampling"]
    assert "The coordinator" in dict(page.facts["Whom it trusts"])
    assert page.simulation
    assert (page.delta, page.twice_delta) == ("0.0001", "0.0002")


def test_page_of_one_hospital_has_no_line_of_two() -> None:
    study = study_of()
    page = page_of(statement_of(study, result_of(study, {"north": spent(study, 6)})))
    assert not {"Patient of two hospitals", "Patient of all hospitals"} & set(
        dict(page.facts["The terms of the promise"])
    )
