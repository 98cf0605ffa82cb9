from __future__ import annotations

import html
import inspect
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import pytest

from fedward_common import wire
from fedward_common.errors import RefusalCode, StudyError
from fedward_common.study import Study
from fedward_server import gatekeeper, replies, roll
from fedward_server.privacy_statement import statement_of
from fedward_server.report import REASONS, render_report
from fedward_server.result import Baselines, Estimate, ModelFile, RoundResult, RunResult, SiteResult, StudyRef
from tests.builders import contract, small_study
from tests.server.run_results import figures, nothing, result_of, took_part

HOSTILE = "<script>alert('x')</script>\"&"


def text_of(page: str) -> str:
    """Return what a reader sees, white space collapsed."""
    visible = re.sub(r"<(style|title|desc)\b.*?</\1>", " ", page, flags=re.DOTALL)
    words = html.unescape(re.sub(r"<[^>]*>", " ", visible))
    return re.sub(r"\s+([.,;:)])", r"\1", re.sub(r"\s+", " ", words))


def told(result: RunResult, study: Study | None = None) -> str:
    """Return what a reader sees of the report of `result`, by default one of the private study."""
    return text_of(render_report(result, study or PRIVATE))


class Outline(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags, ids and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


DP = {"mechanism": "dp_sgd", "epsilon": 8.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 4.0}
PRIVATE = small_study(privacy=DP)
PLAIN = small_study()
EMPTY_CASES = {
    "complete": result_of(PRIVATE),
    "failed at the roll call": nothing(PRIVATE),
    "failed without a site": nothing(PRIVATE, sites={}),
    "interrupted after one round": result_of(
        PRIVATE, status="interrupted", reason="stopped by the operator", rounds=result_of(PRIVATE).rounds[:1]
    ),
    "no baselines": result_of(PRIVATE, baselines=Baselines()),
    "only local baselines": result_of(PRIVATE, baselines=Baselines(local={"north": figures(0.7)})),
    "no metric in the baselines": result_of(PRIVATE, baselines=Baselines(local={"north": {}}, pooled={})),
    "no value": result_of(
        PRIVATE, central=dict.fromkeys(figures(1, PRIVATE.sites), Estimate(value=math.nan, low=None, high=math.nan))
    ),
    "no interval": result_of(PRIVATE, central={"auroc": Estimate(value=0.9, low=math.nan, high=None)}),
    "no metric": result_of(PRIVATE, central={}),
    "rounds without metrics": result_of(PRIVATE, rounds=(RoundResult(round=1, sites=(), seconds=0.0),)),
    "no ROC": result_of(PRIVATE, roc={}),
    "one point of a ROC": result_of(PRIVATE, roc={"false_positive_rate": (0.0,), "true_positive_rate": (0.0,)}),
    "one centre": result_of(PRIVATE, central=figures(0.9)),
    "no finite epsilon": result_of(PRIVATE, sites={"north": took_part(epsilon=math.inf)}),
    "no versions": result_of(PRIVATE, versions={}),
    "no time": result_of(PRIVATE, started_at="yesterday"),
}


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(result_of(PRIVATE), PRIVATE)


class TestDocument:
    def test_needs_nothing_else(self, page: str) -> None:
        outline = Outline(page)
        tags = {tag for tag, _ in outline.tags}
        assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"}
        assert all(value.startswith("#") for name in ("href", "src", "xlink:href") for value in outline.values(name))
        assert "http" not in page.replace("http-equiv", "")
        assert re.findall(r"@import|@font-face|url\((?!#)", page) == []

    def test_forbids_the_browser_to_load_anything(self, page: str) -> None:
        assert """Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""" in page

    def test_links_and_labels_have_their_targets_and_ids_are_unique(self, page: str) -> None:
        outline = Outline(page)
        ids = outline.values("id")
        assert len(ids) == len(set(ids))
        named = [v.removeprefix("#") for v in outline.values("href")]
        labels = [v for name in ("aria-labelledby", "aria-describedby") for v in outline.values(name)]
        assert set(named + labels) <= set(ids)

    def test_is_in_english_and_has_captions_scopes_and_one_main(self, page: str) -> None:
        outline = Outline(page)
        tags = [tag for tag, _ in outline.tags]
        assert ("html", {"lang": "en"}) in outline.tags
        assert tags.count("main") == tags.count("h1") == 1
        assert tags.count("caption") == tags.count("table") == 5
        assert tags.count("figcaption") == tags.count("figure") == 3
        assert all("scope" in attributes for tag, attributes in outline.tags if tag == "th")

    def test_scrolling_regions_can_be_reached_by_keyboard(self, page: str) -> None:
        regions = [a for _, a in Outline(page).tags if "scroll" in (a.get("class") or "").split()]
        assert len(regions) == 5
        assert all(a["tabindex"] == "0" and a["role"] == "region" for a in regions)

    def test_is_the_same_bytes_each_time(self, page: str) -> None:
        again = RunResult.model_validate_json(result_of(PRIVATE).model_dump_json())
        assert render_report(again, Study.of(PRIVATE.contract())) == page

    def test_the_parts_stand_in_their_order(self, page: str) -> None:
        parts = ["summary", "comparison", "curves", "hospitals", "privacy", "statement", "limits", "provenance"]
        assert re.findall(r'<section id="(\w+)"', page) == parts

    def test_a_result_of_another_study_is_refused(self) -> None:
        with pytest.raises(StudyError, match="is of study"):
            render_report(result_of(PRIVATE), PLAIN)

    @pytest.mark.parametrize("case", EMPTY_CASES)
    def test_every_empty_case_is_a_whole_page_without_a_stray_value(self, case: str) -> None:
        rendered = render_report(EMPTY_CASES[case], PRIVATE)
        Outline(rendered)
        assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", text_of(rendered))
        assert not re.search(r"[a-z)][.;][A-Z]|\.\.|\(\)| ,", text_of(rendered))
        assert "Where this comes from" in rendered


class TestHostileText:
    def test_names_and_reasons_are_never_markup(self) -> None:
        site = SiteResult(patients=3, weight=3, status="excluded", reason=HOSTILE)
        hostile = result_of(
            PRIVATE,
            study=StudyRef(name=HOSTILE, digest=PRIVATE.digest, description=HOSTILE),
            engine=HOSTILE, status="failed", reason=HOSTILE, started_at=HOSTILE, versions={HOSTILE: HOSTILE},
            sites={HOSTILE: site}, central=figures(0.9, (HOSTILE,)),
            baselines=Baselines(local={HOSTILE: figures(0.7, (HOSTILE,))}),
            model=ModelFile(file=HOSTILE, sha256=HOSTILE, parameters=1),
        )  # fmt: skip
        rendered = render_report(hostile, PRIVATE)
        tags = Outline(rendered).tags
        assert "script" not in {tag for tag, _ in tags}
        assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
        assert text_of(rendered).count("<script>alert('x')</script>\"&") >= 8

    def test_names_of_columns_and_values_of_the_study_are_never_markup(self) -> None:
        values = contract()
        label = {"column": HOSTILE, "vocabulary": ["no", HOSTILE], "positive": [HOSTILE]}
        columns = values["cohort"]["columns"] | {f"{HOSTILE}2": {"kind": "categorical", "categories": [1, 2]}}
        study = small_study(cohort={"columns": columns, "label": label})
        assert "script" not in {tag for tag, _ in Outline(render_report(result_of(study), study)).tags}


class TestSummary:
    def test_says_what_was_done_and_that_it_was_a_simulation(self, page: str) -> None:
        text = text_of(page)
        assert "What the study is about. Together, 2 hospitals with 80 patients trained one model." in text
        assert "Completed: 3 of 3 rounds." in text
        assert "This was a simulation on one computer" in text
        assert "23 November 2026, 12:54 UTC · simulation" in text
        assert "above that of all 2 models that hospitals trained alone." in text

    @pytest.mark.parametrize(("engine", "simulated"), [("local", True), ("ray", True), ("deployed", False)])
    def test_only_a_simulation_is_called_one(self, engine: str, simulated: bool) -> None:  # noqa: FBT001  (a case)
        text = told(result_of(PRIVATE, engine=engine, baselines=Baselines()))
        assert ("This was a simulation" in text) is simulated
        assert "This was a simulation" in told(result_of(PRIVATE, engine=engine))  # the pooled records tell

    def test_a_failed_run_says_so_first_and_why(self) -> None:
        text = told(nothing(PRIVATE))
        assert "Failed: 0 of 3 rounds. No hospital enrolled; the study asks for at least 2." in text
        assert "— no model" in text
        assert "2 hospitals were asked to train one model together." in text

    @pytest.mark.parametrize(("left", "said"), [(1, "Only 1 hospital answered"), (3, "Only 3 hospitals answered")])
    def test_a_lost_quorum_is_a_sentence_without_the_list_of_reasons(self, left: int, said: str) -> None:
        reason = f"{left} sites answered in round 3, the quorum is 5 (a: bound: x; b: y)"
        text = told(nothing(PRIVATE, reason=reason))
        assert f"{said} in round 3; the study asks for at least 5." in text
        assert "(a: bound" not in text

    @pytest.mark.parametrize("what", ["enrolled", "answered in round 12"])
    def test_a_required_hospital_that_is_missing_is_named(self, what: str) -> None:
        text = told(nothing(PRIVATE, reason=f"required sites have not {what}: north, west (north: bound: x; b: y)"))
        assert f"Not {what}: north, west; the study gives no model without." in text
        assert "(north" not in text

    def test_an_endless_reason_is_cut(self) -> None:
        assert "X" + "x" * 398 + "…" in told(nothing(PRIVATE, reason="x" * 5000))

    def test_an_interrupted_run_shows_its_last_round(self) -> None:
        text = told(EMPTY_CASES["interrupted after one round"])
        assert "Interrupted: 1 of 3 rounds. Stopped by the operator. What follows describes the model after" in text

    def test_a_run_with_gaps_says_so(self) -> None:
        sites = result_of(PRIVATE).sites | {"south": SiteResult(status="excluded", reason="awaiting_approval")}
        text = told(result_of(PRIVATE, status="degraded", sites=sites))
        assert "Completed with gaps: 3 of 3 rounds. At least one hospital missed a round or was excluded" in text
        assert "1 of 2 hospitals with 40 patients trained one model." in text
        assert "1 of 2 hospitals trained. 1 hospital was excluded. The reason stands in each one’s line." in text

    def test_key_figures_carry_their_intervals(self, page: str) -> None:
        key = text_of(page[page.index('<dl class="key">') : page.index("</dl>")])
        assert key.count("0.943 (0.903 to 0.983)") == 3
        assert "3.00 of 8 allowed; δ = 0.0001" in key

    @pytest.mark.parametrize(
        ("alone", "said"),
        [((0.5, 0.6), "all 2 models"), ((0.5, 0.99), "1 of the 2 models"), ((0.98, 0.99), "none of the 2 models")],
    )
    def test_how_many_lone_models_it_beats_is_counted(self, alone: tuple[float, float], said: str) -> None:
        local = dict(zip(PRIVATE.sites, map(figures, alone), strict=True))
        assert said in told(result_of(PRIVATE, baselines=Baselines(local=local)))


class TestComparison:
    def test_every_model_is_listed_with_intervals(self, page: str) -> None:
        table = text_of(page[page.index('id="caption-comparison"') : page.index('id="curves"')])
        assert "Federated records stay at the hospitals 80 0.943 (0.903 to 0.983)" in table
        assert "Pooled only possible in a simulation 80 0.950 (0.910 to 0.990)" in table
        assert re.findall(r"(\w+) 40 0.800 \(0.760 to 0.840\)", table) == ["north", "south"]

    def test_without_baselines_it_says_why(self) -> None:
        text = told(result_of(PRIVATE, baselines=Baselines()))
        assert "This run has no models for comparison" in text
        assert "Pooled" not in text
        assert "Each hospital alone" not in text

    def test_a_hospital_without_a_lone_model_keeps_its_line_with_the_reason(self) -> None:
        assert "south 40" + 3 * " — not trained alone" in told(EMPTY_CASES["only local baselines"])

    def test_what_is_missing_is_a_dash_with_the_reason(self) -> None:
        text = told(EMPTY_CASES["no value"]) + told(EMPTY_CASES["no interval"])
        assert "— one outcome only" in text
        assert "— no records to judge on" in text
        assert "0.900 no interval: too few usable resamples" in text
        assert "— not recorded" in text


class TestFigures:
    def test_there_are_three_of_them_each_described(self, page: str) -> None:
        assert page.count("<svg") == 3
        assert "Area under the curve 0.943 (0.903 to 0.983)." in page
        assert "After round 3: AUROC 0.900, accuracy 0.800, ε 3.00." in page
        assert "north: federated 0.943, alone 0.800; south: federated 0.943, alone 0.800" in page

    def test_the_hold_out_is_as_large_as_the_curve_proves(self, page: str) -> None:
        assert "The hold-out has at least 3 records" in text_of(page)

    def test_without_a_round_each_says_why_it_is_absent(self) -> None:
        rendered = render_report(nothing(PRIVATE), PRIVATE)
        assert "<svg" not in rendered
        assert "There is no curve: no round was completed." in rendered
        assert rendered.count("no model was released.") == 2

    def test_one_outcome_has_no_roc(self) -> None:
        one = result_of(PRIVATE).central | {"auroc": Estimate(value=None, low=None, high=None)}
        rendered = render_report(result_of(PRIVATE, central=one), PRIVATE)
        assert "There is no ROC curve: the hold-out has one outcome only." in rendered

    def test_a_hold_out_of_one_centre_has_no_bars(self) -> None:
        assert "not told apart by hospital" in render_report(EMPTY_CASES["one centre"], PRIVATE)


NAMES = tuple(f"hospital_{n:03d}" for n in range(186))


@pytest.fixture(scope="module")
def many() -> str:
    study = small_study(privacy=DP, sites=list(NAMES))
    return render_report(result_of(study, sites={name: took_part(n + 1) for n, name in enumerate(NAMES)}), study)


class TestManyHospitals:
    def test_each_is_listed_in_both_tables(self, many: str) -> None:
        lines = re.findall(r'<th scope="row"[^>]*>(hospital_\d+)', many)
        assert lines == [*NAMES, *NAMES]

    def test_tables_scroll_and_the_page_stays_light(self, many: str) -> None:
        assert many.count('class="scroll long"') == 2
        assert len(many) < 500_000

    def test_the_spread_of_the_lone_models_is_told(self, many: str) -> None:
        assert "AUROC runs from 0.800 to 0.800, with 0.800 in the middle (median)." in text_of(many)

    def test_the_bars_are_those_of_the_largest_and_it_says_so(self, many: str) -> None:
        svg = many[many.index('id="figure-centres"') :]
        svg = svg[: svg.index("</svg>")]
        shown = {name for name in NAMES if f">{name}</text>" in svg}
        assert shown == set(NAMES[-20:])
        assert "The 20 largest of 186 hospitals are shown." in many


class TestHospitals:
    def test_each_one_has_its_numbers(self, page: str) -> None:
        table = text_of(page[page.index('id="caption-hospitals"') : page.index('id="privacy"')])
        assert re.findall(r"(\w+) 40 40 3 of 3 3.00 0.0001 took part", table) == ["north", "south"]

    @pytest.mark.parametrize(
        ("reason", "sentence"),
        [
            ("policy_limit asked=9 key=a.b", f"{REASONS['policy_limit'][:-1]} (asked for 9, setting a.b)."),
            ("cohort_mismatch rule_count=2 x=1", f"{REASONS['cohort_mismatch'][:-1]} (rules broken: 2)."),
            ("cohort_too_small limit=20", "The hospital had fewer patients than its policy asks for (limit 20)."),
            ("no_reply_before_the_deadline", "The hospital did not answer before the deadline."),
            ("transport_error code=3", "The connection to the hospital failed (error 3)."),
            ("bound: an entry exceeds the bound 64", "The update was larger than the study allows."),
            ("the array is cut short", "The hospital’s reply could not be used."),
            ("weightless nonsense", "The hospital’s reply could not be used."),
        ],
    )
    def test_reasons_are_sentences_beside_the_recorded_words(self, reason: str, sentence: str) -> None:
        sites = {"north": SiteResult(patients=9, weight=9, rounds=1, status="degraded", reason=reason)}
        assert f"missed rounds. {sentence} {reason}" in told(nothing(PRIVATE, sites=sites))

    def test_one_that_never_enrolled_has_dashes_with_the_reason(self) -> None:
        line = "north — never enrolled — never enrolled 0 of 3 0 0.0001 excluded. The hospital was not connected."
        assert line in told(nothing(PRIVATE))

    def test_an_infinite_epsilon_is_no_number(self) -> None:
        text = told(EMPTY_CASES["no finite epsilon"])
        assert "— no finite bound" in text
        assert "No finite ε can be stated for every hospital." in text
        assert "nobody’s odds" not in text


class TestReasons:
    def test_every_refusal_code_has_a_sentence(self) -> None:
        assert set(RefusalCode) <= set(REASONS)

    def test_every_check_of_the_gatekeeper_has_a_sentence(self) -> None:
        checks = set(re.findall(r'_fail\("(\w+)"', inspect.getsource(gatekeeper)))
        assert len(checks) > 5
        assert checks <= set(REASONS)

    def test_every_word_of_the_round_loop_has_a_sentence(self) -> None:
        source = inspect.getsource(replies) + inspect.getsource(roll)
        words = set(re.findall(r'[A-Z_]+(?:: Final)? = "(\w+)"', source))
        assert {"no_reply_before_the_deadline", "not_connected", "reply_after_the_deadline", "transport_error"} <= words
        assert words <= set(REASONS)

    @pytest.mark.parametrize("sentence", REASONS.values())
    def test_sentences_are_whole_and_plain(self, sentence: str) -> None:
        assert re.fullmatch(r"[A-Z][^_=<>]+\.", sentence)


class TestPrivacy:
    def test_the_promise_names_the_factor_of_the_odds(self, page: str) -> None:
        text = text_of(page)
        assert "= 20.1 times" in text  # e³ = 20.0855
        assert "plus 0.0001 (δ)" in text
        assert "Here ε = 3.00, the largest that any hospital spent; the study allowed 8." in text

    @pytest.mark.parametrize(
        ("epsilon", "shown", "word"),
        [(0.5, "0.500", "strong"), (1.0, "1.00", "strong"), (7.9911, "8.00", "reasonable"), (11.01, "11.1", "weak")],
    )
    def test_the_largest_epsilon_of_any_hospital_is_rounded_up_and_judged(
        self, epsilon: float, shown: str, word: str
    ) -> None:
        sites = {"north": took_part(epsilon=0.1), "south": took_part(epsilon=epsilon)}
        text = told(nothing(PRIVATE, sites=sites))
        assert f"Here ε = {shown}, the largest" in text
        assert f"by that measure this one is {word}." in text

    def test_a_run_that_never_trained_spent_nothing(self) -> None:
        assert "Nothing was spent. No hospital was asked for a round" in told(nothing(PRIVATE))

    def test_says_what_leaves_a_hospital_and_what_is_not_covered(self, page: str) -> None:
        text = text_of(page)
        kinds = re.findall(r"^(?:to|from) a site +(\w+(?: \w+)?)", wire.__doc__ or "", re.MULTILINE)
        assert {"roll call", "update"} <= set(kinds)
        table = page[page.index('id="caption-wire"') :]
        assert re.findall(r'<th scope="row">([^<]+)</th>', table[: table.index("</table>")]) == kinds
        assert "clipped and noised" in text
        assert "The number of patients at each hospital" in text
        assert "Patients of the central hold-out" in text
        assert "A patient treated at several of the hospitals" in text
        assert "zero-out adjacency" in text

    def test_rows_that_stand_for_patients_are_named_as_a_weakness(self, page: str) -> None:
        assert "each row counted as one patient" in text_of(page)
        values = contract()["cohort"] | {"patient": "patient"}
        known = small_study(privacy=DP, cohort=values)
        assert "each row counted as one patient" not in told(result_of(known), known)

    def test_no_differential_privacy_is_said_in_a_box(self) -> None:
        rendered = render_report(result_of(PLAIN), PLAIN)
        assert rendered.count('<p class="box"><strong>No differential privacy.</strong>') == 1
        text = text_of(rendered)
        assert "This study was written without it" in text
        assert "without noise" in text
        assert "— no differential privacy" in text
        assert "The terms of the promise" not in text

    def test_a_study_that_says_nothing_about_privacy_gets_the_box_too(self) -> None:
        silent = small_study(privacy=None)
        assert "No differential privacy. This study says nothing about privacy" in told(nothing(silent), silent)


class TestPrivacyStatement:
    def test_plain_words_work_out_what_one_per_cent_can_become(self, page: str) -> None:
        text = text_of(page)
        assert "thinks it 1 % likely that a certain patient’s records were used here" in text
        assert (
            "they cannot rightly become more than 16.9 % sure of it, δ aside" in text
        )  # 0.01 e³ / (1 + 0.01 (e³ - 1))
        assert "with ε = 3.00 at the hospital that spent most" in text
        assert "has a probability of at most 2δ = 0.0002" in text

    def test_table_of_suspicion_has_one_and_two_hospitals(self, page: str) -> None:
        table = page[page.index('id="caption-bets"') :]
        lines = re.findall(r"(\d+ %) ([\d.]+ %) ([\d.]+ %)", text_of(table[: table.index("</table>")]))
        assert [line[:2] for line in lines] == [("1 %", "16.9 %"), ("10 %", "69.1 %"), ("50 %", "95.3 %")]
        assert all(float(two[:-2]) >= float(one[:-2]) for _, one, two in lines)

    def test_says_what_is_not_covered_and_what_each_release_is_protected_by(self, page: str) -> None:
        text = text_of(page[page.index('id="statement"') : page.index('id="limits"')])
        statement = statement_of(PRIVATE, result_of(PRIVATE))
        assert len(statement.not_covered) > 9
        assert all(f"{gap.topic}. {gap.text}" in text for gap in statement.not_covered)
        assert all(f"{entry.what} {entry.holds} {entry.seen_by}" in text for entry in statement.released)
        assert "updates the change of the model’s weights, clipped and noised at the hospital" in text
        assert "Never left a hospital: patients’ records" in text

    def test_simulated_hospitals_are_called_simulated(self, page: str) -> None:
        real = told(result_of(PRIVATE, engine="deployed", baselines=Baselines()))
        assert "The hospitals were simulated: it speaks of the rows that stood for their patients." in text_of(page)
        assert "The hospitals were simulated" not in real
        assert "The models for comparison." in text_of(page)
        assert "The models for comparison." not in real

    @pytest.mark.parametrize("case", ["failed at the roll call", "no finite epsilon"])
    def test_without_a_finite_epsilon_above_zero_nobody_is_shown_a_bet(self, case: str) -> None:
        text = told(EMPTY_CASES[case])
        assert "In plain words" not in text
        assert "The terms of the promise" in text

    def test_name_of_the_patients_column_is_never_markup(self) -> None:
        study = small_study(privacy=DP, cohort={"patient": HOSTILE})
        rendered = render_report(result_of(study), study)
        assert f"all rows of a hospital that agree in {HOSTILE};" in text_of(rendered)
        assert "script" not in {tag for tag, _ in Outline(rendered).tags}

    def test_noised_loss_is_named_where_it_leaves(self) -> None:
        study = small_study(privacy=DP | {"loss": "noised"})
        text = told(result_of(study), study)
        assert "clipped and noised; the mean loss in training, noised" in text
        assert "the loss takes 5 % of the step’s privacy" in text

    def test_without_differential_privacy_it_says_so_and_shows_no_epsilon(self) -> None:
        rendered = render_report(result_of(PLAIN), PLAIN)
        part = text_of(rendered[rendered.index('id="statement"') : rendered.index('id="limits"')])
        assert "There is no guarantee to state." in part
        assert "ε" not in part
        assert "δ" not in part


class TestProvenance:
    def test_everything_that_identifies_the_run_is_there(self, page: str) -> None:
        facts = text_of(page[page.index('id="h-provenance"') :])
        for fact in (PRIVATE.digest, "ab" * 32, "fedward 0.1.0, torch 2.13.0", "Seed 1", "4.57 s", "version 1"):
            assert fact in facts
        assert "1,234 parameters (linear)" in facts
        assert "outcome, positive when yes" in facts
        assert "age, pressure, sex, stage" in facts

    @pytest.mark.parametrize(
        ("seconds", "said"), [(0.0, "0 s"), (4.568, "4.57 s"), (119, "119 s"), (300, "5 min"), (9000, "2 h 30 min")]
    )
    def test_durations_are_in_units_of_their_size(self, seconds: float, said: str) -> None:
        assert f"Duration {said} " in told(nothing(PRIVATE, seconds=seconds))
