"""The console's routes: log-in by a token, pages made at the server, forms that cannot be sent from elsewhere.

Everything works without script; ``console.js`` only fetches a live page again and puts its moving parts in place.
Every request by hand passes the same desk as the interface for programs: judged, and written to the centre's log.
What a page that was opened by hand fetches to stay fresh is judged and not written down.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fedward_common.certificates import certificate_expiry
from fedward_common.errors import AccessCode, AccessError, FedwardError, Refusal, UnknownStudyError
from fedward_server.centre import load_centre, roster_of
from fedward_server.console.facts import DOWNLOADS, RunFacts, read_facts
from fedward_server.console.live_page import live_view
from fedward_server.console.metrics import scrape
from fedward_server.console.offers import offers
from fedward_server.console.page import asset, content_policy, render
from fedward_server.console.sessions import COOKIE, LONGEST_S, Session, Sessions
from fedward_server.console.trail import Filter, leaf
from fedward_server.console.views import SiteLine, approvals, cards, certificate_line, run_lines, signers, site_lines
from fedward_server.studies.access import Access, Caller
from fedward_server.studies.book import StudyBook, StudyEntry
from fedward_server.studies.centre_log import centre_log
from fedward_server.studies.desk import Call, Desk
from fedward_server.studies.lifecycle import Wish, after_wish
from fedward_server.studies.rights import Action, allow, right

__all__ = ["REFRESH_HEADER", "add_pages"]

REFRESH_HEADER: Final = "x-fedward-refresh"
"""Marks what a page fetches by itself."""

_LONGEST_FORM: Final = 8192
_ACTIONS: Final[Mapping[Wish, Action]] = {"pause": Action.PAUSE, "resume": Action.RESUME, "stop": Action.STOP}
_FILES: Final = {
    "report.html": (Action.RESULT, "text/html; charset=utf-8"),
    "result.json": (Action.RESULT, "application/json"),
    "privacy.json": (Action.RESULT, "application/json"),
    "study.json": (Action.SHOW, "application/json"),
    "model.safetensors": (Action.MODEL, "application/octet-stream"),
}
_HEADERS: Final = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_OPENED: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_UNTRUSTED: Final = (
    "Nothing is shown or decided until somebody has looked, because nothing could be written down.",
    "At the centre’s computer, fedward server audit verify says what is wrong.",
)
_PATH: Final = re.compile(r"/(?!/)[\w./?=&%+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Visit:
    """A request of somebody who has logged in."""

    caller: Caller
    session: Session
    number: str
    peer: str

    def may(self, action: Action) -> bool:
        """Return whether the caller's role may do this at all."""
        return right(self.caller.role, action) != "no"


Answer = Callable[[_Visit], Response]


def add_pages(app: FastAPI, home: Path, access: Access) -> None:
    """Put the console on `app`, beside what is there.

    Args:
        app: an unknown address outside ``/api`` gets a page from now on.
        home: the centre's folder.
        access: its tokens.
    """
    console = _Console(home, access)
    gets: dict[str, Callable[..., Any]] = {
        "/": console.runs,
        "/runs/{id_}": console.live,
        "/runs/{id_}/study": console.study,
        "/runs/{id_}/stop": console.confirm,
        "/runs/{id_}/files/{name}": console.file,
        "/sites": console.sites,
        "/audit": console.audit,
        "/login": console.door,
        "/metrics": console.metrics,
        "/static/{name}": console.static,
    }
    for path, answer in gets.items():
        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False, response_model=None)
    posts: dict[str, Callable[..., Any]] = {
        "/login": console.enter,
        "/logout": console.leave,
        "/runs/{id_}/wish": console.wish,
    }
    for path, taken in posts.items():
        app.add_api_route(path, taken, methods=["POST"], include_in_schema=False, response_model=None)
    _answer_unknown_addresses(app)


def _answer_unknown_addresses(app: FastAPI) -> None:
    """Answer people with a page where the interface for programs answers with JSON."""
    former = app.exception_handlers.get(HTTPException)

    async def handle(request: Request, error: Exception) -> Response:
        if request.url.path.startswith("/api/") and former is not None:
            answered: Response = await former(request, error)  # type: ignore[misc]
            return answered
        status = error.status_code if isinstance(error, HTTPException) else 500
        return _problem(status, "There is no such page", "", "Start from the list of studies.")

    app.add_exception_handler(HTTPException, handle)


class _Console:
    """The pages of one centre."""

    def __init__(self, home: Path, access: Access) -> None:
        self._home = home
        self._access = access
        self._book = StudyBook(home)
        self._desk = Desk(home, access, self._book)
        self._sessions = Sessions()

    # ----------------------------------------------------------------------------------------------------- the pages

    def runs(self, request: Request) -> Response:
        """Show all studies."""

        def answer(visit: _Visit) -> Response:
            found = [read_facts(entry, self._book.folder(entry.id)) for entry in self._book.entries()]
            return self._page(visit, "runs.html.j2", here="runs", lines=run_lines(found, _now()))

        return self._answer(request, Action.LIST, answer)

    def live(self, request: Request, id_: str) -> Response:
        """Show the rounds of a study."""

        def answer(visit: _Visit) -> Response:
            entry, facts = self._facts(id_)
            every = request.query_params.get("rounds") == "all"
            view = live_view(facts, _now(), every=every)
            return self._page(
                visit,
                "live.html.j2",
                here="runs",
                entry=entry,
                facts=facts,
                view=view,
                offers=offers(entry, visit.caller),
            )

        return self._answer(request, Action.SHOW, answer, id_)

    def study(self, request: Request, id_: str) -> Response:
        """Show the contract of a study, who signed it, how the hospitals stand to it, and what can be downloaded."""

        def answer(visit: _Visit) -> Response:
            entry, facts = self._facts(id_)
            allowed = {name for name, (action, _) in _FILES.items() if visit.may(action)}
            return self._page(
                visit,
                "study.html.j2",
                here="runs",
                entry=entry,
                facts=facts,
                study=facts.file.study if facts.file else None,
                cards=cards(facts.file.study) if facts.file else [],
                signers=signers(facts.file, load_centre(self._home).study_keys),
                approvals=approvals(facts, _now()),
                allowed=allowed,
            )

        return self._answer(request, Action.SHOW, answer, id_)

    def confirm(self, request: Request, id_: str) -> Response:
        """Ask whether a study is really to be stopped."""

        def answer(visit: _Visit) -> Response:
            entry, facts = self._facts(id_)
            if "stop" not in offers(entry, visit.caller):
                return _problem(409, "This study cannot be stopped", f"It is {entry.state}.", "Go back to its rounds.")
            return self._page(visit, "stop.html.j2", here="runs", entry=entry, facts=facts)

        return self._answer(request, Action.SHOW, answer, id_)

    def file(self, request: Request, id_: str, name: str) -> Response:
        """Give a file of a run away; ``?open`` shows a report instead, shut into a sandbox."""
        action, kind = _FILES.get(name, (Action.RESULT, ""))

        def answer(_: _Visit) -> Response:
            path = self._book.folder(self._book.entry(id_).id) / name
            if name not in DOWNLOADS or path.is_symlink() or not path.is_file():
                return _problem(
                    404, "This file is not there", f"The study has left no {name[:40]} yet.", "Wait for its end."
                )
            opened = "open" in request.query_params and name == "report.html"
            headers = _HEADERS | {"content-security-policy": _OPENED if opened else "sandbox; default-src 'none'"}
            saved = f"{self._book.entry(id_).name}-{name}"
            way = "inline" if opened else "attachment"
            return FileResponse(path, media_type=kind, filename=saved, content_disposition_type=way, headers=headers)

        return self._answer(request, action, answer, id_)

    def sites(self, request: Request) -> Response:
        """Show the hospitals of the roster, and what expires at the centre."""

        def answer(visit: _Visit) -> Response:
            now = _now()
            roster = roster_of(load_centre(self._home))
            lines = site_lines(roster.entries(), roster.waiting(now), now)
            return self._page(visit, "sites.html.j2", here="sites", lines=lines, own=self._certificates(now))

        return self._answer(request, Action.SITES, answer)

    def _certificates(self, now: datetime) -> list[SiteLine]:
        config = load_centre(self._home)
        kept = {"server certificate": config.certificate, "authority of this centre": config.ca}
        notes = {
            "server certificate": "a running launcher renews it; look at its log",
            "authority of this centre": "make a new authority, and invite every hospital again",
        }
        return [
            certificate_line(what, certificate_expiry(path.read_bytes()), now, notes[what])
            for what, path in kept.items()
            if path is not None and path.exists()
        ]

    def audit(self, request: Request) -> Response:
        """Show the centre's log to an auditor."""
        query = request.query_params
        page = query.get("page", "1")
        wanted = Filter(query.get("event", "")[:64], query.get("text", "")[:64], int(page) if page.isdigit() else 1)

        def answer(visit: _Visit) -> Response:
            log = centre_log(self._home)
            findings = log.verify()
            found = leaf(log.entries(), findings, wanted) if not findings else leaf((), findings, wanted)
            return self._page(visit, "audit.html.j2", here="audit", leaf=found, wanted=wanted)

        return self._answer(request, Action.AUDIT, answer)

    # ------------------------------------------------------------------------------------------------- forms and doors

    async def wish(self, request: Request, id_: str) -> Response:
        """Tell a study to pause, to go on or to stop; then show its rounds."""
        fields = await _form(request)
        return await run_in_threadpool(self._wish, request, id_, fields)

    def _wish(self, request: Request, id_: str, fields: Mapping[str, str]) -> Response:
        wish = fields.get("wish", "")
        if wish not in _ACTIONS:
            return _problem(
                400, "Nothing was changed", "The form says none of pause, resume and stop.", "Send it again."
            )
        told: Wish = wish  # type: ignore[assignment]

        def answer(visit: _Visit) -> Response:
            self._book.wish(id_, told, visit.caller.name, _now())
            return _see(f"/runs/{id_}")

        def check(_: Caller) -> None:
            entry = self._book.entry(id_)
            after_wish(entry.state, told, started=entry.started_at is not None)

        return self._answer(request, _ACTIONS[told], answer, id_, fields=fields, check=check)

    def door(self, request: Request) -> Response:
        """Show the log-in."""
        return self._door(_inside(request.query_params.get("next", "/")))

    def _door(self, following: str, status: int = 200, wrong: AccessError | None = None) -> Response:
        return _html(render("login.html.j2", visitor=None, here="", form="", following=following, wrong=wrong), status)

    async def enter(self, request: Request) -> Response:
        """Begin a session for a token."""
        fields = await _form(request)
        if not _from_here(request):
            return _problem(403, "Nothing was changed", "The form came from another page.", "Log in on this one.")
        return await run_in_threadpool(self._enter, request, fields)

    def _enter(self, request: Request, fields: Mapping[str, str]) -> Response:
        following, token = _inside(fields.get("next", "/")), fields.get("token", "").strip()
        try:
            self._desk.admit(Call(token, _peer(request), Action.LIST))
        except AccessError as error:
            limited = error.reason is AccessCode.RATE_LIMITED
            return self._door(following, 429 if limited else 401, error)
        answer = _see(following)
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        number = self._sessions.begin(token, time.monotonic())
        answer.set_cookie(
            COOKIE, number, max_age=int(LONGEST_S), httponly=True, samesite="strict", secure=secure, path="/"
        )
        return answer

    async def leave(self, request: Request) -> Response:
        """End the session."""
        fields = await _form(request)
        session = self._sessions.find(request.cookies.get(COOKIE, ""), time.monotonic(), by_hand=True)
        if session is not None and not (session.sent(fields.get("form", "")) and _from_here(request)):
            return _problem(403, "Nothing was changed", "The form came from another page.", "Log out on this one.")
        self._sessions.end(request.cookies.get(COOKIE, ""))
        answer = _see("/login")
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    def metrics(self, request: Request) -> Response:
        """Answer Prometheus, which brings a token of any role: a proxy's requests come from loopback like anybody's."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            caller = self._access.caller(token.strip() if kind.lower() == "bearer" else "", peer=_peer(request))
            allow(caller.role, Action.LIST)
        except AccessError as error:
            text = f"{error.message}; {error.remedy}\n"
            return Response(text, 401, _HEADERS | {"www-authenticate": "Bearer"}, "text/plain")
        content, media = scrape(self._home, self._book, _now())
        return Response(content, media_type=media, headers=_HEADERS)

    def static(self, name: str) -> Response:
        """Give the style sheet, the script or the icon."""
        found = asset(name)
        if found is None:
            return _problem(404, "There is no such file", "", "Start from the list of studies.")
        content, kind = found
        headers = _HEADERS | {"cache-control": "max-age=300", "content-security-policy": "default-src 'none'"}
        return Response(content, media_type=kind, headers=headers)

    # ------------------------------------------------------------------------------------------------------- judgement

    def _answer(
        self,
        request: Request,
        action: Action,
        answer: Answer,
        run: str = "",
        *,
        fields: Mapping[str, str] | None = None,
        check: Callable[[Caller], None] = lambda _: None,
    ) -> Response:
        """Answer somebody who has logged in and may do this; others with the log-in, or with what to do.

        Args:
            request: a form's, if there are `fields`.
            action: what is asked.
            answer: gives the page.
            run: the study that it concerns.
            fields: of the form; it must come from a page of this session.
            check: what else must hold.
        """
        number, peer = request.cookies.get(COOKIE, ""), _peer(request)
        by_hand = fields is not None or request.headers.get(REFRESH_HEADER) is None
        session = self._sessions.find(number, time.monotonic(), by_hand=by_hand)
        if session is None:
            return _see(f"/login?next={quote(_wanted(request), safe='/')}")
        if fields is not None and not (session.sent(fields.get("form", "")) and _from_here(request)):
            return _problem(403, "Nothing was changed", "The form came from another page.", "Send it from this one.")
        try:
            if not by_hand and self._sessions.opened(number, run):
                caller = self._access.caller(session.token, peer=peer)
                allow(caller.role, action)
            else:
                caller = self._desk.admit(Call(session.token, peer, action, run), check)
                self._sessions.open(number, run)
            return answer(_Visit(caller, session, number, peer))
        except FedwardError as error:
            return self._turned_away(number, error)

    def _turned_away(self, number: str, error: FedwardError) -> Response:
        if isinstance(error, AccessError) and error.reason is not AccessCode.FORBIDDEN:
            self._sessions.end(number)
            return self._door("/", 401, error)
        if isinstance(error, Refusal):
            return _problem(503, "The centre’s log cannot be trusted", *_UNTRUSTED)
        kinds = (
            (AccessError, 403, "Your role does not include this"),
            (UnknownStudyError, 404, "There is no such study"),
        )
        for kind, status, title in kinds:
            if isinstance(error, kind):
                return _problem(status, title, error.message, error.remedy or "Start from the list of studies.")
        return _problem(409, "This was not done", error.message, error.remedy)

    def _facts(self, id_: str) -> tuple[StudyEntry, RunFacts]:
        entry = self._book.entry(id_)
        return entry, read_facts(entry, self._book.folder(id_))

    def _page(self, visit: _Visit, template: str, *, here: str, **values: Any) -> Response:
        auditor = visit.may(Action.AUDIT)
        visitor = asdict(visit.caller) | {"auditor": auditor}
        return _html(render(template, visitor=visitor, form=visit.session.form, here=here, now=_now(), **values))


def _html(text: str, status: int = 200) -> Response:
    return HTMLResponse(text, status, _HEADERS | {"content-security-policy": content_policy()})


def _problem(status: int, title: str, what: str, remedy: str) -> Response:
    return _html(
        render("problem.html.j2", visitor=None, here="", form="", title=title, what=what, remedy=remedy), status
    )


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303, _HEADERS)


def _now() -> datetime:
    return datetime.now(UTC)


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _wanted(request: Request) -> str:
    """Return where somebody wanted to go; a form's address is none to go back to."""
    return _inside(request.url.path) if request.method == "GET" else "/"


def _inside(path: str) -> str:
    """Return `path` if it leads to a page of this console, else its first page."""
    return path if _PATH.fullmatch(path) else "/"


def _from_here(request: Request) -> bool:
    """Return whether a browser says that a form comes from this origin; one that says nothing is believed."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")


async def _form(request: Request) -> dict[str, str]:
    """Return a form's fields, the last of each name.

    Raises:
        HTTPException: 413: it is longer than any form of the console.
    """
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LONGEST_FORM:
            raise HTTPException(413)
    fields = parse_qs(content.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=16)
    return {name: values[-1] for name, values in fields.items()}
