"""The border: what leaves the ClientApp is an answer or a code, whatever went wrong behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict
from structlog.testing import capture_logs

from fedward_client.app import HOME_KEY, app, respond
from fedward_client.site import approve
from fedward_common.flower_adapter import assume_identity, detached_message
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.study import Study
from fedward_common.wire import read_enrolment, read_refusal, read_update, write_roll_call, write_task
from tests.builders import COHORT, private_study, site_home, small_study, table

STUDY = small_study()


@pytest.fixture(autouse=True)
def _identity() -> None:
    assume_identity(run=1, node=7)


def ask(home: Path, content: RecordDict, kind: str) -> Message:
    context = Context(run_id=1, node_id=7, node_config={HOME_KEY: str(home)}, state=RecordDict(), run_config={})
    message = detached_message(content, source=1, target=7, message_type=kind)
    return app(message, context)


def task(study: Study) -> RecordDict:
    return write_task(study, 1, initial_weights(study))


def outbound(content: RecordDict) -> bytes:
    """Return every byte of the records, names and values."""
    parts: list[bytes] = []
    for name, record in content.items():
        parts.append(name.encode())
        for key, value in record.items():
            parts += [key.encode(), getattr(value, "data", repr(value).encode())]
    return b"\x00".join(parts)


def test_app_answers_roll_call_and_task(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    enrolment = read_enrolment(ask(home, write_roll_call(STUDY), "query").content)
    assert enrolment.digest == STUDY.digest
    update = read_update(ask(home, task(STUDY), "train").content, size=parameter_spec(STUDY).size)
    assert update.round == 1


def test_text_of_an_exception_never_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower would send it: str(exception) goes into the reply's error reason."""

    def crash(*_: object, **__: object) -> None:
        msg = "could not convert 'CANARY' to float in row 47371"
        raise ValueError(msg)

    monkeypatch.setattr("fedward_client.trainer.train_round", crash)
    reply = ask(site_home(tmp_path, STUDY), task(STUDY), "train")
    assert not reply.has_error()
    assert read_refusal(reply.content) == "internal_error"
    assert b"CANARY" not in outbound(reply.content)
    assert b"47371" not in outbound(reply.content)


def test_site_that_cannot_be_opened_answers_with_a_code(tmp_path: Path) -> None:
    home = tmp_path / "north"
    home.mkdir()
    assert read_refusal(respond(task(STUDY), home)) == "internal_error"
    (home / "site.yaml").write_text("site: CANARY CANARY", encoding="utf-8")
    reply = respond(task(STUDY), home)
    assert read_refusal(reply) == "internal_error"
    assert b"CANARY" not in outbound(reply)


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"x": 1}'])
def test_approvals_that_cannot_be_read_approve_nothing(tmp_path: Path, text: str) -> None:
    home = site_home(tmp_path, STUDY)
    (home / "approvals.json").write_text(text, encoding="utf-8")
    assert read_refusal(respond(task(STUDY), home)) in {"internal_error", "awaiting_approval"}


def test_damaged_ledger_spends_nothing_more_and_says_so(tmp_path: Path) -> None:
    study = private_study()
    home = site_home(tmp_path, study)
    respond(write_roll_call(study), home)
    (home / "ledger.sqlite").write_bytes(b"CANARY" * 500)

    replies = [respond(content, home) for content in (write_roll_call(study), task(study))]

    assert [read_refusal(reply) for reply in replies] == ["budget_untrusted", "budget_untrusted"]
    assert not [reply for reply in replies if b"CANARY" in outbound(reply)]


def test_site_whose_log_was_changed_decides_nothing_and_says_so(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    respond(task(STUDY), home)
    log = home / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"released", b"refused "))

    reply = respond(task(STUDY), home)

    assert read_refusal(reply) == "audit_untrusted"


def test_spoiled_cache_is_made_anew_from_the_table(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    first = respond(task(STUDY), home)
    kept = next((home / "cache").glob("*.npz"))
    kept.write_bytes(b"CANARY" * 500)

    again = respond(task(STUDY), home)

    assert read_refusal(first) is None
    assert read_refusal(again) is None
    assert b"CANARY" not in outbound(again)
    assert b"CANARY" not in kept.read_bytes()


def canaries(rows: int = 30) -> tuple[pd.DataFrame, list[bytes]]:
    """Return a valid table whose every cell can be recognised, and the bytes that must not be found."""
    frame = table(rows)
    draw = np.random.default_rng(5)
    ages, pressures = draw.uniform(18.5, 99.5, rows), draw.uniform(61, 239, rows)
    frame["age"], frame["pressure"] = [f"{a:.9f}" for a in ages], [f"{p:.9f}" for p in pressures]
    frame["record"] = [f"CANARY{row:05d}" for row in range(rows)]
    marks = [text.encode() for column in ("age", "pressure", "record") for text in frame[column]]
    scaled = [*((2 * ages - 118) / 82), *((2 * pressures - 300) / 180), *ages, *pressures]
    for kind in (np.float32, np.float64):
        marks += [np.array(value, dtype=kind).tobytes() for value in scaled]
    return frame, marks


@pytest.mark.parametrize("study", [STUDY, private_study()], ids=["plain", "private"])
def test_no_cell_of_the_table_is_in_any_outbound_byte(tmp_path: Path, study: Study) -> None:
    frame, marks = canaries()
    home = site_home(tmp_path, study, frame=frame)
    replies = [respond(content, home) for content in (write_roll_call(study), task(study), task(study), RecordDict())]
    (home / f"{COHORT}.csv").write_text(frame.replace("f", "CANARY").to_csv(index=False), encoding="utf-8")
    replies.append(respond(write_roll_call(study), home))
    assert read_refusal(replies[-1]) == "awaiting_approval"
    approve(home, study, COHORT)
    replies.append(respond(write_roll_call(study), home))
    assert read_refusal(replies[-1]) == "cohort_mismatch rule_count=1"
    sent = b"\x00".join(outbound(reply) for reply in replies)
    assert not [mark for mark in marks if mark in sent]
    assert b"CANARY" not in sent


@pytest.mark.parametrize("study", [STUDY, private_study()], ids=["plain", "private"])
def test_reply_holds_the_fields_of_the_protocol_and_no_other(tmp_path: Path, study: Study) -> None:
    home = site_home(tmp_path, study)
    respond(write_roll_call(study), home)
    reply = respond(task(study), home)
    header = dict(reply.config_records["fedward"])
    plain = {"loss"} if study is STUDY else set()
    assert (
        set(header) == {"protocol", "site", "digest", "round", "weight", "steps", "dtype", "length", "vector"} | plain
    )
    assert set(reply) == {"fedward"}


def test_log_of_a_refusal_stays_at_the_site(tmp_path: Path) -> None:
    """What the site writes for its own staff names the error's kind; the reply does not even hold that."""
    (tmp_path / "north").mkdir()
    with capture_logs() as logged:  # wherever an earlier test has sent the log
        reply = respond(task(STUDY), tmp_path / "north")
    assert "site.yaml" in str(logged)
    assert "site.yaml" not in json.dumps(outbound(reply).decode(errors="replace"))
