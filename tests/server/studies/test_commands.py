"""What a person types at the centre, and what the commands print, refuse and return."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from typer import Typer
from typer.testing import CliRunner

from fedward_common.errors import AccessCode, AccessError, CoordinatorError, FedwardError, TransportError
from fedward_server.result import ModelFile, RunResult, SiteResult, StudyRef
from fedward_server.run_status import RunStatus, SiteStatus, write_status
from fedward_server.sites_cli import sites
from fedward_server.studies import remote
from fedward_server.studies.access import Access, Role
from fedward_server.studies.api import build_api
from fedward_server.studies.centre_cli import access, audit, down, status, up
from fedward_server.studies.centre_log import centre_log
from fedward_server.studies.remote import Remote, read_token
from fedward_server.studies.study_cli import app as study
from fedward_server.studies.supervisor import _locks
from tests.studies_centre import StudiesCentre

NOW = dt.datetime.now(dt.UTC)


class Bridge(httpx.BaseTransport):
    """Carries the commands' requests to the interface in this process."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport) as client:
                content = request.read()
                return await client.request(request.method, request.url, headers=request.headers, content=content)

        answer = asyncio.run(ask())
        return httpx.Response(answer.status_code, content=answer.content)


@pytest.fixture
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudiesCentre:
    """Return a centre whose interface answers the commands, with a token file for each role."""
    made = StudiesCentre(tmp_path / "centre")
    tokens = Access(made.home)
    for role in Role:
        path = tmp_path / role.value
        path.write_text(tokens.issue(role.value, role, NOW) + "\n")
        path.chmod(0o600)
    api, original = build_api(made.home), httpx.Client

    def client(**settings: Any) -> httpx.Client:
        return original(**settings, transport=Bridge(api))

    monkeypatch.setattr(remote.httpx, "Client", client)  # type: ignore[attr-defined]
    monkeypatch.setenv("FEDWARD_CENTRE", str(made.home))
    monkeypatch.delenv("FEDWARD_TOKEN", raising=False)
    return made


def type_in(app: Typer, *words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def said(app: Typer, *words: str) -> str:
    """Return what a command prints; it must succeed."""
    result = type_in(app, *words)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def refused(app: Typer, *words: str) -> FedwardError:
    """Return why a command does not do it; `fedward` prints that with its remedy and returns 1."""
    result = type_in(app, *words)
    assert isinstance(result.exception, FedwardError), result.output
    assert result.exception.remedy
    return result.exception


def who(centre: StudiesCentre, role: str) -> tuple[str, str]:
    return "--token-file", str(centre.home.parent / role)


def submit(centre: StudiesCentre, name: str = "small") -> str:
    path = centre.home.parent / f"{name}.json"
    path.write_bytes(centre.signed(name=name).dump())
    line = said(study, "submit", str(path), *who(centre, "scientist"))
    assert " queued " in line
    return line.split()[0]


# -------------------------------------------------------------------------------------------------------------- studies
def test_a_study_is_handed_in_listed_and_shown(centre: StudiesCentre) -> None:
    id_ = submit(centre)

    assert id_ in said(study, "list", *who(centre, "viewer"))
    assert json.loads(said(study, "list", "--json", *who(centre, "viewer")))[0]["id"] == id_
    page = said(study, "show", id_, *who(centre, "viewer"))
    assert "state      queued" in page
    assert "hospitals  north, south" in page
    assert json.loads(said(study, "show", id_, "--json", *who(centre, "viewer")))["study"]["name"] == "small"


def test_an_empty_book_says_what_to_do(centre: StudiesCentre) -> None:
    assert "fedward server study submit" in said(study, "list", *who(centre, "viewer"))


def test_a_study_that_runs_is_shown_hospital_by_hospital(centre: StudiesCentre) -> None:
    id_ = submit(centre)
    hospitals = {"north": SiteStatus(state="accepted"), "south": SiteStatus(state="missed", reason="task_timed_out")}
    now = RunStatus(state="running", round=2, rounds=3, sites=hospitals, updated_at=NOW.isoformat(), pid=1)
    write_status(centre.book.folder(id_), now)

    page = said(study, "show", id_, *who(centre, "viewer"))

    assert "round      2 of 3\n" in page
    assert "missed: task_timed_out" in page


def test_a_round_that_waits_is_shown_with_what_it_waits_for(
    centre: StudiesCentre, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = submit(centre)
    centre.book.begin(id_, NOW)
    why, at = "round 2 waits for a quorum", NOW.isoformat()
    sites = {"north": SiteStatus(state="accepted"), "south": SiteStatus(state="waiting")}
    now = RunStatus(state="running", round=2, rounds=3, sites=sites, updated_at=at, pid=1, reason=why)
    write_status(centre.book.folder(id_), now)

    assert f"round      2 of 3: {why}" in said(study, "show", id_, *who(centre, "viewer"))
    original = Remote.get

    def get(self: Remote, path: str, **query: str | float) -> Any:
        found = original(self, path, **(query | {"wait": 0.0}))
        if centre.book.entry(id_).state == "running":
            centre.book.end(id_, "completed", None, NOW)
        return found

    monkeypatch.setattr(Remote, "get", get)
    lines = type_in(study, "watch", id_, *who(centre, "viewer")).output.splitlines()
    assert lines[0] == f"{id_} running: running, round 2 of 3, waiting for south: {why}"


def test_wishes_are_told_and_refusals_are_words_with_a_remedy(centre: StudiesCentre) -> None:
    id_ = submit(centre)

    assert " paused " in said(study, "pause", id_, *who(centre, "scientist"))
    assert " queued " in said(study, "resume", id_, *who(centre, "scientist"))
    assert isinstance(refused(study, "stop", id_, *who(centre, "scientist")), AccessError)
    assert isinstance(refused(study, "resume", id_, *who(centre, "operator")), CoordinatorError)
    assert " interrupted " in said(study, "stop", id_, *who(centre, "operator"))
    assert isinstance(refused(study, "pause", "20261127-120000-abcdef", *who(centre, "operator")), CoordinatorError)


def test_the_same_study_twice_is_refused(centre: StudiesCentre) -> None:
    id_ = submit(centre)

    error = refused(study, "submit", str(centre.home.parent / "small.json"), *who(centre, "scientist"))

    assert id_ in error.message


def test_whoever_watches_sees_each_change_and_the_end_in_the_exit_code(
    centre: StudiesCentre, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = submit(centre)
    steps = [
        lambda: centre.book.begin(id_, NOW),
        lambda: centre.book.end(id_, "degraded", "south: missed round 2", NOW),
    ]
    original = Remote.get

    def get(self: Remote, path: str, **query: str | float) -> Any:
        found = original(self, path, **(query | {"wait": 0.0}))
        if steps:
            steps.pop(0)()
        return found

    monkeypatch.setattr(Remote, "get", get)
    result = type_in(study, "watch", id_, *who(centre, "viewer"))

    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{id_} queued", f"{id_} running", f"{id_} degraded (south: missed round 2)",
    ]  # fmt: skip


def test_a_bad_end_is_an_exit_code(centre: StudiesCentre) -> None:
    id_ = submit(centre)
    centre.book.end(id_, "failed", "too few sites", NOW)

    result = type_in(study, "watch", id_, *who(centre, "viewer"))

    assert (result.exit_code, result.output) == (1, f"{id_} failed (too few sites)\n")


def test_a_result_is_printed_and_its_files_are_fetched_once(centre: StudiesCentre) -> None:
    id_, out = submit(centre), centre.home.parent / "out"
    assert "result.json" in refused(study, "result", id_, *who(centre, "scientist")).message
    result = RunResult(
        study=StudyRef(name="small", digest="0" * 64), engine="double", seed=0, status="degraded", reason="south: late",
        started_at=NOW.isoformat(), seconds=1.0, versions={}, privacy=None, rounds=(), central={},
        sites={"north": SiteResult(rounds=3, epsilon=1.234, status="completed")},
        model=ModelFile(file="model.safetensors", sha256="f" * 64, parameters=8),
    )  # fmt: skip
    folder = centre.book.folder(id_)
    (folder / "result.json").write_text(result.model_dump_json())
    for name in ("privacy.json", "report.html", "model.safetensors"):
        (folder / name).write_bytes(name.encode())

    text = said(study, "result", id_, "--out", str(out), *who(centre, "scientist"))

    assert "small  degraded: south: late" in text
    assert "completed, 3 rounds, epsilon 1.23" in text
    assert (out / "model.safetensors").read_bytes() == b"model.safetensors"
    assert "is there already" in refused(study, "result", id_, "--out", str(out), *who(centre, "scientist")).message
    assert isinstance(refused(study, "result", id_, "--out", str(out / "x"), *who(centre, "viewer")), AccessError)


# --------------------------------------------------------------------------------------------------------------- tokens
def test_a_token_comes_from_the_environment_first(tmp_path: Path) -> None:
    assert read_token({"FEDWARD_TOKEN": " abc\n"}, tmp_path / "none") == "abc"


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_token_file_that_others_may_read_is_not_used(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("abc")
    path.chmod(mode)

    with pytest.raises(AccessError, match="open to other accounts"):
        read_token({}, path)


def test_no_token_is_told_with_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(AccessError) as caught:
        read_token({}, tmp_path / "none")
    assert caught.value.reason is AccessCode.MISSING
    assert "access issue" in caught.value.remedy


@pytest.mark.parametrize(
    "url", ["http://centre.example:8470", "http://10.0.0.1", "ftp://127.0.0.1", "", "http://u:p@127.0.0.1"]
)
def test_a_token_is_sent_over_no_network_in_the_clear(url: str) -> None:
    with pytest.raises(TransportError):
        Remote(url, "abc")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8470", "http://[::1]:8470", "http://localhost", "https://centre.example"]
)
def test_loopback_and_tls_are_taken(url: str) -> None:
    with Remote(url, "abc"):
        pass


def test_a_centre_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("abc")
    path.chmod(0o600)

    error = refused(study, "list", "--url", "http://127.0.0.1:9", "--token-file", str(path))

    assert isinstance(error, TransportError)


# --------------------------------------------------------------------------------------------------------------- access
def test_access_is_issued_listed_and_revoked_and_each_is_in_the_log(centre: StudiesCentre) -> None:
    token = said(access, "issue", "ann", "--role", "scientist", "--days", "3").strip()
    listed = said(access, "list")
    assert "ann                      scientist  valid" in listed
    assert token not in listed
    assert Access(centre.home).caller(token).name == "ann"
    said(access, "revoke", "ann")
    assert refused(access, "revoke", "ann").message == "'ann' has no valid token"

    issued, revoked = list(centre_log(centre.home).entries())
    assert (issued.event, issued.fields["name"], issued.fields["role"]) == ("access issued", "ann", "scientist")
    assert (revoked.event, revoked.fields["name"]) == ("access revoked", "ann")
    assert issued.fields["person"]


def test_a_token_that_is_not_issued_is_not_in_the_log(centre: StudiesCentre) -> None:
    refused(access, "issue", "viewer", "--role", "viewer")
    assert type_in(access, "issue", "ann", "--role", "root").exit_code == 2

    assert list(centre_log(centre.home).entries()) == []


def test_invites_and_revocations_of_hospitals_are_in_the_log(centre: StudiesCentre) -> None:
    said(sites, "invite", "east")
    said(sites, "revoke", "north")

    told = [
        (entry.event, entry.fields.get("site") or entry.fields["name"]) for entry in centre_log(centre.home).entries()
    ]
    assert told == [("site invited", "east"), ("site revoked", "north")]


# ---------------------------------------------------------------------------------------------------------------- audit
def test_a_log_is_verified_exported_and_checked_elsewhere(centre: StudiesCentre) -> None:
    submit(centre)
    pack, key = centre.home.parent / "audit.json", centre_log(centre.home).public_key()

    assert said(audit, "verify").startswith("good: 1 entries")
    said(audit, "export", str(pack))
    assert said(audit, "check", str(pack), "--key", key).startswith("good: 1 entries")
    assert "cannot be written" in refused(audit, "export", str(pack)).message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"person\\":\\"scientist', '"person\\":\\"somebody_'),
        ('"centre": "localhost', '"centre": "elsewhere'),
        ('"n": 1', '"n": 2'),
    ],
)
def test_an_export_that_was_changed_is_found(centre: StudiesCentre, old: str, new: str) -> None:
    submit(centre)
    pack = centre.home.parent / "audit.json"
    said(audit, "export", str(pack))
    content = pack.read_text()
    assert old in content
    pack.write_text(content.replace(old, new))

    result = type_in(audit, "check", str(pack))

    assert result.exit_code == 1
    assert "WRONG" in result.output


def test_an_export_of_another_centre_is_found_by_the_key(centre: StudiesCentre, tmp_path: Path) -> None:
    submit(centre)
    pack = tmp_path / "audit.json"
    said(audit, "export", str(pack))
    stranger = centre_log(StudiesCentre(tmp_path / "other").home).public_key()

    assert type_in(audit, "check", str(pack), "--key", stranger).exit_code == 1


def test_an_edited_log_is_an_exit_code(centre: StudiesCentre) -> None:
    submit(centre)
    log = centre.home / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"scientist", b"scientisT"))

    result = type_in(audit, "verify", "--json")

    assert result.exit_code == 1
    assert json.loads(result.output)["whole"] is False


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format": "fedward-centre-audit-1", "lines": 1}'])
def test_what_is_no_export_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pack"
    path.write_bytes(content)

    assert "no copy of a centre's log" in refused(audit, "check", str(path)).message


# ----------------------------------------------------------------------------------------------------- up, down, status
def test_a_centre_that_is_down_says_so_in_words_and_exit_code(centre: StudiesCentre) -> None:
    id_ = submit(centre)
    result = type_in(status)

    assert result.exit_code == 3
    assert result.output.startswith("down\n")
    assert f"{id_} queued" in result.output
    assert json.loads(type_in(status, "--json").output)["up"] is False
    assert "is not up" in refused(down).message


def test_up_beside_another_is_refused(centre: StudiesCentre) -> None:
    with _locks(centre.home):
        assert type_in(up).exit_code == 2


@pytest.mark.parametrize("command", [up, down, status])
def test_a_folder_that_is_no_centre_is_refused(tmp_path: Path, command: Typer) -> None:
    assert "is no centre" in refused(command, "--home", str(tmp_path)).message


@pytest.mark.parametrize("words", [("issue", "ann", "--role", "viewer"), ("list",), ("revoke", "ann")])
def test_access_to_no_centre_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert "is no centre" in refused(access, *words, "--home", str(tmp_path)).message
    assert not list(tmp_path.iterdir())
