"""Prometheus reads what real runs left; every board and every alert asks for a metric and labels that exist."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fedward_server.console.facts import RunFacts
from fedward_server.console.metrics import Around, Expiry, exposition, scrape
from fedward_server.studies.access import Role
from fedward_server.studies.api import build_api
from fedward_server.studies.book import StudyEntry
from fedward_server.studies.centre_log import centre_log
from tests.console_centre import ConsoleCentre
from tests.server.console.lines import line

ROOT = Path(__file__).parents[3]
BOARD = ROOT / "deploy" / "grafana" / "fedward-centre.json"
RULES = ROOT / "deploy" / "prometheus" / "fedward-centre.rules.yml"
SCRAPE = ROOT / "deploy" / "prometheus" / "fedward-centre.yml"
NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
AROUND = Around(superlink_up=True, disk_free=123, expiries=(Expiry("node key", "Bern", NOW + dt.timedelta(days=36)),))

Lived = tuple[ConsoleCentre, Mapping[str, StudyEntry]]


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name.removeprefix("fedward_centre_"), frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(text: bytes, name: str, **labels: str) -> float:
    (found,) = [v for (n, told), v in samples(text).items() if n == name and set(labels.items()) <= told]
    return found


@pytest.fixture
def told(lived: Lived, facts: dict[str, RunFacts]) -> bytes:
    return exposition(list(facts.values()), AROUND, lived[0].now)


# ------------------------------------------------------------------------------------------------------ what it says


def test_runs_are_counted_by_state_and_every_state_is_there(told: bytes) -> None:
    states = {dict(labels)["state"]: v for (name, labels), v in samples(told).items() if name == "runs"}

    assert states == {
        "queued": 1, "running": 2, "paused": 0, "stopping": 0, "completed": 1, "degraded": 0,
        "interrupted": 0, "failed": 1,
    }  # fmt: skip


def test_a_run_that_goes_on_says_how_far_it_is(told: bytes) -> None:
    study = {"study": "sepsis_early_warning"}

    assert value(told, "open_round", **study) == 7
    assert value(told, "rounds_planned", **study) == 10
    assert value(told, "rounds_closed_total", **study) == 6
    assert value(told, "answered", **study) == 2
    assert value(told, "quorum", **study) == 2
    assert value(told, "open_round_age_seconds", **study) == pytest.approx(40)
    assert value(told, "status_age_seconds", **study) == pytest.approx(2)


def test_sites_are_counted_by_what_they_did_and_by_the_code_of_the_reason(told: bytes) -> None:
    study = {"study": "sepsis_early_warning"}

    assert value(told, "accepted_total", site="Bern", **study) == 4
    assert value(told, "missed_total", site="Bern", reason="task_out_of_memory", **study) == 2
    assert value(told, "missed_total", site="Graz", reason="no_reply_before_the_deadline", **study) == 1
    assert value(told, "epsilon_claim", **study) == 4
    assert 3.2 < value(told, "epsilon", site="Aachen", **study) < 3.3
    assert value(told, "epsilon", site="Zurich", **study) == 0


def test_seconds_of_all_closed_rounds_are_a_histogram(told: bytes, facts: dict[str, RunFacts]) -> None:
    seconds = [entry.seconds for found in facts.values() for entry in found.closed]

    assert value(told, "round_seconds_count") == len(seconds) == 10
    assert value(told, "round_seconds_sum") == pytest.approx(sum(seconds))
    assert value(told, "round_seconds_bucket", le="+Inf") == 10
    assert value(told, "round_seconds_bucket", le="5.0") == sum(s <= 5 for s in seconds)


def test_a_study_that_is_over_has_no_open_round(told: bytes) -> None:
    live = {dict(labels)["study"] for (name, labels), _ in samples(told).items() if name == "open_round"}

    assert live == {"sepsis_early_warning", "fall_risk", "delirium"}


def test_the_centre_itself_is_told(told: bytes, lived: Lived) -> None:
    assert value(told, "superlink_up") == 1
    assert value(told, "disk_free_bytes") == 123
    assert value(told, "unreadable_runs") == 0
    assert value(told, "expiry_days", what="node key", site="Bern") == pytest.approx(
        (AROUND.expiries[0].not_after - lived[0].now) / dt.timedelta(days=1)
    )


def test_a_reply_s_text_makes_no_new_series(facts: dict[str, RunFacts]) -> None:
    done = facts["completed"]
    assert done.result is not None
    evil = ['x"} 1\nfedward_centre_superlink_up 0', "patient Miller 4711", "", "a" * 9000, "weight: 7 of 5"]
    entries = tuple(
        done.result.rounds[0].model_copy(update={"round": n, "sites": (), "missing": {"Bern": why}})
        for n, why in enumerate(evil, start=1)
    )
    bad = replace(done, result=done.result.model_copy(update={"rounds": entries}))

    text = exposition([bad], AROUND, NOW)

    assert value(text, "missed_total", reason="other") == 4
    assert value(text, "missed_total", reason="weight") == 1
    assert value(text, "superlink_up") == 1
    assert b"Miller" not in text


def test_no_bound_is_infinite(facts: dict[str, RunFacts]) -> None:
    done = facts["completed"]
    assert done.result is not None
    site = done.result.sites["Bern"].model_copy(update={"epsilon": None})
    bad = replace(done, result=done.result.model_copy(update={"sites": dict(done.result.sites) | {"Bern": site}}))

    assert value(exposition([bad], AROUND, NOW), "epsilon", site="Bern") == float("inf")


def test_an_empty_book_and_an_unreadable_run_are_told() -> None:
    assert value(exposition([], AROUND, NOW), "round_seconds_count") == 0
    assert value(exposition([RunFacts(line(), unreadable=("result.json",))], AROUND, NOW), "unreadable_runs") == 1


def test_nothing_of_other_libraries_is_told(told: bytes) -> None:
    names = {family.name for family in text_string_to_metric_families(told.decode())}

    assert all(name.startswith("fedward_centre_") for name in names)


# --------------------------------------------------------------------------------------------------------- who gets it


def ask(centre: ConsoleCentre, **headers: str) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(build_api(centre.home), client=("127.0.0.1", 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8471") as client:
            return await client.get("/metrics", headers=headers)

    return asyncio.run(asked())


@pytest.mark.parametrize(
    "authorization", ["", "Bearer ", "Bearer wrong", "Basic dXNlcjp3b3Jk", "Bearer " + "0" * 12 + "." + "A" * 43]
)
def test_nobody_gets_them_without_a_token_from_loopback_either(lived: Lived, authorization: str) -> None:
    answer = ask(lived[0], **({"authorization": authorization} if authorization else {}))

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "fedward_centre" not in answer.text


def test_every_role_gets_them_and_the_log_is_not_filled(lived: Lived) -> None:
    centre = lived[0]
    token = centre.token("prometheus", Role.VIEWER)
    before = len(list(centre_log(centre.home).entries()))

    answer = ask(centre, authorization=f"Bearer {token}")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert value(answer.content, "runs", state="completed") == 1
    assert value(answer.content, "expiry_days", what="node key", site="Ulm") > 30_000
    assert value(answer.content, "expiry_days", what="authority", site="") > 3_000
    assert value(answer.content, "disk_free_bytes") > 0
    assert len(list(centre_log(centre.home).entries())) == before


def test_the_superlink_is_up_where_its_port_takes_connections(lived: Lived) -> None:
    centre = lived[0]
    path = centre.home / "superlink.json"
    settings = json.loads(path.read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path.write_text(json.dumps(settings | {"private_port": listener.getsockname()[1]}))
        assert value(scrape(centre.home, centre.book, centre.now)[0], "superlink_up") == 1
    assert value(scrape(centre.home, centre.book, centre.now)[0], "superlink_up") == 0
    path.write_text(json.dumps(settings))


# --------------------------------------------------------------------------------------------------- board and alerts


def families(text: bytes) -> dict[str, set[str]]:
    """Return the names of series and the labels that each has."""
    found: dict[str, set[str]] = {}
    for name, labels in samples(text):
        found.setdefault(f"fedward_centre_{name}", set()).update(key for key, _ in labels)
    return found


def checked(expression: str, known: Mapping[str, set[str]]) -> None:
    """Hold an expression's series, selectors and groupings against what is exported."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\bfedward_\w+", bare))
    assert names, expression
    assert names <= set(known), names - set(known)
    labels = set().union(*(known[name] for name in names))
    for inside in re.findall(r"\{([^}]*)\}", bare):
        assert {part.split("=")[0].strip("!~ ") for part in inside.split(",") if part} <= labels, expression
    for inside in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare):
        assert {part.strip() for part in inside.split(",")} <= labels, expression
    assert bare.count("(") == bare.count(")")


def queries(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"].removeprefix("label_values(").partition(",")[0]


def test_every_query_of_the_board_names_what_exists(told: bytes) -> None:
    found = list(queries(json.loads(BOARD.read_text(encoding="utf-8"))))

    assert len(found) > 20
    for query in found:
        checked(query, families(told))


def test_every_exported_family_is_on_the_board(told: bytes) -> None:
    shown = set(re.findall(r"fedward_centre_\w+", BOARD.read_text(encoding="utf-8")))
    parts = {"fedward_centre_round_seconds_sum", "fedward_centre_round_seconds_count"}

    assert set(families(told)) - parts <= shown


def test_the_board_s_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    taken = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


def test_every_alert_names_what_exists_and_says_what_to_do(told: bytes) -> None:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]

    assert len(group["rules"]) == len({rule["alert"] for rule in group["rules"]})
    for rule in group["rules"]:
        checked(rule["expr"], families(told))
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["remedy"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_prometheus_is_told_to_bring_a_token() -> None:
    settings = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
    (job,) = settings["scrape_configs"]

    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"]
    assert settings["rule_files"] == ["/etc/prometheus/fedward-centre.rules.yml"]
