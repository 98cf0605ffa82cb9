"""docs/hospital-guide.md says what the code does: limits, keys, codes, ports, and the bytes that leave."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fedward_client.connection import ConnectionSettings
from fedward_client.loopback import DEFAULT_ADDRESS
from fedward_client.policy import Policy
from fedward_client.syslog_message import DEFAULT_PORT
from fedward_common.errors import RefusalCode
from fedward_common.models import parameter_spec
from fedward_server.sites_cli import init_command
from fedward_simulations.faults.canary import Hospital
from fedward_simulations.faults.canary_scenarios import ROUNDS, SCENARIOS, canary_study

PAGE = (Path(__file__).parents[2] / "docs" / "hospital-guide.md").read_text(encoding="utf-8")
CALLS = {
    "activate-node": "activation", "send-node-heartbeat": "sign of life", "pull-messages": "request for messages",
    "get-run": "request for a run's description", "get-fab": "request for a run's description",
    "pull-object": "request for a part of a message", "confirm-message-received": "receipt of a message",
    "deactivate-node": "end",
}  # fmt: skip
"""Row of the guide's table for each call but that which carries what a site has to say."""


def rows(title: str) -> list[list[str]]:
    """Return the cells of the first table of a section, without its head."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def said_of(message: str) -> tuple[int, int]:
    """Return the least and the greatest of the numbers in the last cell of a message's row."""
    (cell,) = (row[-1] for row in rows("What leaves the building") if row[0].startswith(message))
    numbers = [int(number) for number in re.findall(r"\d+", cell.partition("+")[2] or cell)]
    return min(numbers), max(numbers)


def code(cell: str) -> str:
    return cell.strip("`")


# ------------------------------------------------------------------------------------------------ keys, codes and ports
def test_every_limit_of_the_policy_is_there_with_its_default() -> None:
    said = {code(key): code(default) for key, default, _ in rows("The policy, `site.yaml`")}

    assert list(said) == list(Policy.model_fields)
    values = {key: yaml.safe_load(default) for key, default in said.items() if key != "resources"}
    assert values == Policy().model_dump(mode="json", exclude={"resources"})


def test_every_optional_key_of_the_connection_is_there_with_its_default() -> None:
    said = {
        code(key): None if default == "none" else float(default) for key, default, _ in rows("Proxy and inspection")
    }

    numbers = {
        entry.name: entry.default
        for entry in fields(ConnectionSettings)
        if isinstance(entry.default, int | float) or entry.name.endswith("_mbit_s")
    }
    assert said == numbers


def test_every_code_is_explained_and_none_that_is_not_there() -> None:
    assert {code(row[0]) for row in rows("Refusals")} == set(RefusalCode)


def test_the_ports_are_the_defaults() -> None:
    table = str(rows("Ports"))

    assert DEFAULT_ADDRESS in table
    assert str(DEFAULT_PORT) in table
    assert inspect.signature(init_command).parameters["port"].default == 8443
    assert "8443 by default" in table


# ----------------------------------------------------------------------------------------------------- bytes that leave
@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Return the sizes of all requests of a daemon by call; those of replies by what they are."""
    found: dict[str, list[int]] = defaultdict(list)
    with Hospital(tmp_path_factory.mktemp("guide")) as hospital:
        for scenario in SCENARIOS[:5]:
            before = len(hospital.superlink.heard)
            codes = hospital.play(scenario)
            heard = [request.partition(b"\n\n") for request in hospital.superlink.heard[before:]]
            replies = [len(body) for head, _, body in heard if b"/push-messages " in head]
            assert len(replies) == len(codes)
            for number, (refusal, size) in enumerate(zip(codes, replies, strict=True)):
                kind = "update" if number else "roll call's answer"
                found["refusal" if refusal else kind if scenario.private else f"{kind}, not private"].append(size)
    for request in hospital.superlink.heard:
        head, _, body = request.partition(b"\n\n")
        found[head.split()[1].decode().rpartition("/")[2]].append(len(body))
        found["headers"].append(len(head))
    return found


@pytest.mark.deployed
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_request_has_the_size_that_the_guide_says(sent: dict[str, list[int]], call: str) -> None:
    least, most = said_of(CALLS[call])

    assert sent[call] or call == "send-node-heartbeat"
    assert all(least <= size <= most for size in sent[call])


@pytest.mark.deployed
def test_a_reply_has_the_size_that_the_guide_says(sent: dict[str, list[int]]) -> None:
    vector = 8 * parameter_spec(canary_study("guide")).size
    (metric, _), (least, most) = said_of("metric"), said_of("update")

    assert {size - vector for size in sent["update"]} <= set(range(least, most + 1))
    assert {size - vector - metric for size in sent["update, not private"]} <= set(range(least, most + 1))
    assert len(sent["update"]) == 3 * ROUNDS
    least, most = said_of("roll call's answer")
    assert {*sent["roll call's answer"], *sent["roll call's answer, not private"]} <= set(range(least, most + 1))
    assert set(sent["refusal"]) == {said_of("refusal")[0]}


@pytest.mark.deployed
def test_a_request_has_the_headers_that_the_guide_says(sent: dict[str, list[int]]) -> None:
    assert "800 to 1,100 bytes" in PAGE
    assert min(sent["headers"]) >= 800
    assert max(sent["headers"]) <= 1100


@pytest.mark.deployed
def test_no_call_is_made_that_the_guide_does_not_have(sent: dict[str, list[int]]) -> None:
    calls = {name for name in sent if "-" in name}

    assert calls <= {*CALLS, "push-messages", "push-object"}
