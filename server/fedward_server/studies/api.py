"""The centre's interface over HTTP, for the commands and the console: ``/api/v1``, JSON, bearer tokens.

Every answer that is no success is ``{"code", "message", "remedy"}``. No page describes the interface to strangers.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fedward_common import __version__
from fedward_common.errors import (
    AccessCode,
    AccessError,
    CoordinatorError,
    FedwardError,
    InstallationError,
    Refusal,
    StudyError,
    UnknownStudyError,
)
from fedward_common.study_file import MAX_BYTES, parse_study_file
from fedward_server.admission import counts
from fedward_server.centre import load_centre, roster_of
from fedward_server.console.pages import add_pages
from fedward_server.run_status import read_status
from fedward_server.studies.access import Access, Caller
from fedward_server.studies.book import StudyBook, StudyEntry
from fedward_server.studies.centre_log import centre_log
from fedward_server.studies.desk import Call, Desk, code_of
from fedward_server.studies.lifecycle import Wish, after_wish
from fedward_server.studies.remote import PREFIX
from fedward_server.studies.rights import Action

__all__ = ["FILES", "HOLD_OUTS", "api_router", "build_api"]

HOLD_OUTS: Final = "hold-outs"
"""Folder of the centre with files of central rows; a call names one of them and no other path."""

FILES: Final[dict[str, tuple[Action, str]]] = {
    "report.html": (Action.RESULT, "text/html; charset=utf-8"),
    "privacy.json": (Action.RESULT, "application/json"),
    "result.json": (Action.RESULT, "application/json"),
    "model.safetensors": (Action.MODEL, "application/octet-stream"),
}
"""What of a run's folder is given away, to whom, and as what."""

_WISHES: Final[dict[Wish, Action]] = {"pause": Action.PAUSE, "resume": Action.RESUME, "stop": Action.STOP}
_LONGEST_WAIT_S: Final = 25.0
_LOOK_S: Final = 0.25
_MOST_ENTRIES: Final = 1000
_LOCK_DOWN: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_log = structlog.get_logger()


class Told(BaseModel):
    """Body of a wish."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wish: Wish


def build_api(home: Path) -> FastAPI:
    """Return the application that serves the centre in `home`.

    The console's pages are on it where they are installed.

    Raises:
        InstallationError: the folder is no centre's.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="Fedward")
    access = Access(home)
    app.include_router(api_router(home, access))
    _answer_errors(app)
    add_pages(app, home, access)
    return app


def api_router(home: Path, access: Access) -> APIRouter:
    """Return the calls below ``/api/v1`` for the centre in `home`."""
    return _Api(home, access).router()


def _token(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


Token = Annotated[str, Depends(_token)]


class _Api:
    """The calls."""

    def __init__(self, home: Path, access: Access) -> None:
        self._home = home
        self._book = StudyBook(home)
        self._desk = Desk(home, access, self._book)

    def router(self) -> APIRouter:
        router = APIRouter(prefix=PREFIX)
        router.add_api_route("/health", self.health, methods=["GET"])
        router.add_api_route("/studies", self.studies, methods=["GET"])
        router.add_api_route("/studies", self.submit, methods=["POST"], status_code=201)
        router.add_api_route("/studies/{id_}", self.show, methods=["GET"])
        router.add_api_route("/studies/{id_}/wish", self.wish, methods=["POST"])
        router.add_api_route("/studies/{id_}/result", self.result, methods=["GET"])
        router.add_api_route("/studies/{id_}/files/{name}", self.file, methods=["GET"])
        router.add_api_route("/sites", self.sites, methods=["GET"])
        router.add_api_route("/audit", self.audit, methods=["GET"])
        return router

    async def health(self) -> dict[str, Any]:
        """Answer whoever asks that this process lives; it says nothing else, and nobody writes it down."""
        return {"ok": True, "version": __version__}

    def studies(self, request: Request, token: Token) -> dict[str, Any]:
        """Answer with all studies, the newest last."""
        self._desk.admit(Call(token, _peer(request), Action.LIST))
        return {"studies": [entry.model_dump(mode="json") for entry in self._book.entries()]}

    async def submit(
        self, request: Request, token: Token, hold_out: Annotated[str | None, Query(max_length=120)] = None
    ) -> dict[str, Any]:
        """Take the bytes of a signed study file into the queue."""
        await run_in_threadpool(self._desk.screen, Call(token, _peer(request), Action.SUBMIT))
        content = await _body(request, MAX_BYTES)
        entry = await run_in_threadpool(self._submit, Call(token, _peer(request), Action.SUBMIT, "", content), hold_out)
        return entry.model_dump(mode="json")

    def _submit(self, call: Call, hold_out: str | None) -> StudyEntry:
        central = self._hold_out(hold_out) if hold_out else None

        def check(_: Caller) -> None:
            self._book.check(parse_study_file(call.content, "the study file"), dt.datetime.now(dt.UTC), central)

        caller = self._desk.admit(call, check)
        try:
            study_file = parse_study_file(call.content, "the study file")
            return self._book.submit(study_file, caller.name, dt.datetime.now(dt.UTC), central)
        except FedwardError as error:
            self._desk.failed(call, caller, error)
            raise

    def _hold_out(self, name: str) -> Path:
        """Return the named file of the centre's own folder; a name that leads out of it is looked for inside it."""
        return self._home / HOLD_OUTS / Path(name).name

    async def show(
        self, request: Request, token: Token, id_: str, seen: str = "", wait: Annotated[float, Query(ge=0)] = 0.0
    ) -> dict[str, Any]:
        """Answer with one study and where it stands: once its version is not `seen`, or after `wait` seconds."""
        await run_in_threadpool(self._desk.admit, Call(token, _peer(request), Action.SHOW, id_))
        loop = asyncio.get_running_loop()
        end = loop.time() + min(wait, _LONGEST_WAIT_S)
        while True:
            found = await run_in_threadpool(self._shown, id_)
            if found["version"] != seen or loop.time() >= end:
                return found
            await asyncio.sleep(_LOOK_S)

    def _shown(self, id_: str) -> dict[str, Any]:
        entry, status = self._book.entry(id_), read_status(self._book.folder(id_))
        content = {
            "study": entry.model_dump(mode="json"),
            "status": status.model_dump(mode="json", exclude={"updated_at"}) if status else None,
        }
        return content | {"version": hashlib.sha256(repr(content).encode()).hexdigest()[:16]}

    def wish(self, request: Request, token: Token, id_: str, told: Told) -> dict[str, Any]:
        """Tell a study to pause, to go on, or to stop."""
        call = Call(token, _peer(request), _WISHES[told.wish], id_)

        def check(_: Caller) -> None:
            entry = self._book.entry(id_)
            after_wish(entry.state, told.wish, started=entry.started_at is not None)

        caller = self._desk.admit(call, check)
        try:
            entry = self._book.wish(id_, told.wish, caller.name, dt.datetime.now(dt.UTC))
        except FedwardError as error:
            self._desk.failed(call, caller, error)
            raise
        return entry.model_dump(mode="json")

    def result(self, request: Request, token: Token, id_: str) -> Response:
        """Answer with ``result.json``."""
        return self.file(request, token, id_, "result.json")

    def file(self, request: Request, token: Token, id_: str, name: str) -> Response:
        """Answer with one of `FILES`."""
        action, kind = FILES.get(name, (Action.RESULT, ""))
        missing = CoordinatorError(
            f"this study has no {name if kind else 'such file'}",
            remedy="it has not ended, or released no model" if kind else "files: " + ", ".join(FILES),
        )

        def check(_: Caller) -> None:
            if not kind or not (self._book.folder(id_) / name).is_file():
                raise missing

        self._desk.admit(Call(token, _peer(request), action, id_), check)
        return FileResponse(self._book.folder(id_) / name, media_type=kind, filename=name, headers=dict(_LOCK_DOWN))

    def sites(self, request: Request, token: Token) -> dict[str, Any]:
        """Answer with the hospitals in the roster, and those that are invited."""
        self._desk.admit(Call(token, _peer(request), Action.SITES))
        roster, now = roster_of(load_centre(self._home)), dt.datetime.now(dt.UTC)
        rows = [
            {
                "site": entry.row.site,
                "state": entry.state,
                "counts": counts(entry.row, now),
                "not_after": entry.row.not_after,
            }
            for entry in roster.entries()
        ]
        invited = [{"site": invite.site, "expires_at": invite.expires_at} for invite in roster.waiting(now)]
        return {"sites": rows, "invited": invited}

    def audit(
        self, request: Request, token: Token, last: Annotated[int, Query(ge=1, le=_MOST_ENTRIES)] = 100
    ) -> dict[str, Any]:
        """Answer with the last entries of the log, the oldest first, this call's own among them."""
        self._desk.admit(Call(token, _peer(request), Action.AUDIT))
        entries = centre_log(self._home).last(last)
        return {
            "entries": [
                {"number": entry.number, "at": entry.at, "event": entry.event, "fields": dict(entry.fields)}
                for entry in entries
            ]
        }


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


async def _body(request: Request, most: int) -> bytes:
    """Return a request's body; one that is larger than `most` is not read to its end.

    Raises:
        HTTPException: 413.
    """
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > most:
        raise HTTPException(413)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise HTTPException(413)
    return bytes(content)


_PHRASES: Final = {
    404: ("not_found", "there is nothing here"),
    405: ("method_not_allowed", "this address takes other calls"),
    413: ("too_large", f"more than {MAX_BYTES} bytes"),
}


_STATUS: Final[tuple[tuple[type[FedwardError], int], ...]] = (
    (AccessError, 401),
    (UnknownStudyError, 404),
    (StudyError, 422),
    (CoordinatorError, 409),
    (InstallationError, 503),
    (Refusal, 503),
)
"""The first that fits counts."""
_ACCESS_STATUS: Final = {AccessCode.FORBIDDEN: 403, AccessCode.RATE_LIMITED: 429}


def _status_of(error: FedwardError) -> int:
    if isinstance(error, AccessError) and error.reason in _ACCESS_STATUS:
        return _ACCESS_STATUS[error.reason]
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def _answer(status: int, code: str, message: str, remedy: str = "") -> JSONResponse:
    headers = dict(_LOCK_DOWN) | ({"www-authenticate": "Bearer"} if status == 401 else {})  # noqa: PLR2004  (RFC 9110)
    return JSONResponse({"code": code, "message": message, "remedy": remedy}, status, headers)


def _answer_errors(app: FastAPI) -> None:
    """Let every failure be a code, a message and a remedy; the text of no other exception leaves this process."""

    @app.exception_handler(FedwardError)
    async def known(_: Request, error: FedwardError) -> JSONResponse:
        status = _status_of(error)
        if status >= 500:  # noqa: PLR2004  (RFC 9110)
            _log.error("call_failed", code=code_of(error), error=error.message)
            return _answer(status, code_of(error), "the centre cannot do this now", "its log says why")
        return _answer(status, code_of(error), error.message, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        places = sorted({".".join(str(part) for part in found["loc"]) for found in error.errors()})
        return _answer(422, "request_invalid", f"not as expected: {', '.join(places)[:200]}")

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        code, message = _PHRASES.get(error.status_code, ("refused", "refused"))
        return _answer(error.status_code, code, message)

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> JSONResponse:
        _log.error("call_broke", error=type(error).__name__)
        return _answer(500, "internal", "the centre failed at this call", "its log says what failed")
