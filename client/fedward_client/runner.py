"""One forked child for each message: fresh memory, nothing of the daemon's, warmed imports.

The fork server is started before the daemon opens its key and its connection, so neither exists in any child. What a
child returns is bytes: content, or a code from `RefusalCode`. The text of an exception stays in the child.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing as mp
import os
import random
import re
import sys
import time
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Final, cast

import structlog
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward_client.flower_adapter import decode_content, decode_message, encode_content, encode_message
from fedward_common.errors import InstallationError, Refusal, RefusalCode

__all__ = ["DEFAULT_APP", "Outcome", "Runner", "TaskLimits", "coded", "configure_logs"]

DEFAULT_APP: Final = "fedward_client.app:app"
_WARM_MODULE: Final = "fedward_client.warm"
_REFERENCE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_CODED: Final = re.compile(r"([a-z_]+)(?: (?:key|limit|asked|round|rule_count)=[\w.+-]{1,64})*", re.ASCII)
_CONTENT: Final = b"C"
_REFUSED: Final = b"R"
_LOOK_S: Final = 0.05
_log = structlog.get_logger("fedward.runner")


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What one task may use: `wall_s` seconds from fork to reply, and a reply of `reply_bytes` bytes."""

    wall_s: float = 3600.0
    reply_bytes: int = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task: content, or the coded text of a refusal; exactly one of them. `seconds` of wall time."""

    content: RecordDict | None
    refusal: str | None
    seconds: float


class Runner:
    """Runs the installed ClientApp, one message at a time, each in its own child.

    Args:
        app: ``module:attribute`` of a `ClientApp` that is installed here; never taken from a message.
        limits: what a task may use.
    """

    def __init__(self, app: str = DEFAULT_APP, limits: TaskLimits | None = None) -> None:
        if not _REFERENCE.fullmatch(app):
            msg = f"{app!r} does not name an installed ClientApp"
            raise InstallationError(msg, remedy="write it as module:attribute")
        self._app = app
        self._limits = limits or TaskLimits()
        self._context = mp.get_context("forkserver")

    def start(self) -> None:
        """Start and warm the fork server, and see that a child of it finds the app.

        A process has one fork server. If somebody else started it before, tasks work but import for themselves.

        Raises:
            InstallationError: a child cannot be forked, or does not find the app.
        """
        os.environ["FEDWARD_WARM_MODULE"] = self._app.partition(":")[0]
        self._context.set_forkserver_preload([_WARM_MODULE])
        started = time.monotonic()
        answer, _ = self._fork(_probe, (self._app,), Event(), 120.0)
        if answer not in {b"warm", b"cold"}:
            problem = answer.decode("utf-8", "replace") if answer else "no answer"
            msg = f"the task process does not start: {problem}"
            raise InstallationError(msg, remedy=f"python -c 'import {self._app.partition(':')[0]}' shows the cause")
        if answer == b"cold":
            _log.warning("runner_cold", cause="another part of this process started the fork server before")
        _log.info("runner_started", seconds=round(time.monotonic() - started, 2), app=self._app)

    def run(self, message: Message, context: Context, stop: Event) -> Outcome:
        """Run the app on `message` in a new child and return what came of it; never raises for the child's faults.

        The child is killed after the wall-time limit, and at once when `stop` is set.
        """
        started = time.monotonic()
        task = (self._app, encode_message(message), _context_json(context))
        answer, ending = self._fork(_task, task, stop, self._limits.wall_s)
        outcome = self._outcome(answer, ending)
        seconds = time.monotonic() - started
        _log.info("task_done", refusal=outcome.refusal, ending=ending, seconds=round(seconds, 3))
        return Outcome(outcome.content, outcome.refusal, seconds)

    def _outcome(self, answer: bytes | None, ending: str) -> Outcome:
        if answer is None:
            code = {
                "timeout": RefusalCode.TASK_TIMED_OUT,
                "oversized": RefusalCode.UPDATE_OUT_OF_BOUNDS,
            }.get(ending, RefusalCode.TASK_CRASHED)
            return Outcome(None, code.value, 0.0)
        if answer[:1] == _CONTENT:
            with suppress(Exception):  # a decoder's error is the child's fault, whatever its type
                return Outcome(decode_content(answer[1:]), None, 0.0)
        return Outcome(None, coded(answer[1:].decode("utf-8", "replace")), 0.0)

    def _fork(self, target: object, args: tuple[object, ...], stop: Event, wall_s: float) -> tuple[bytes | None, str]:
        """Return the child's one answer, and how it ended: answered, timeout, stopped, oversized, or its exit code."""
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=target, args=(writer, *args), daemon=True)  # type: ignore[arg-type]
        with _no_main_module():
            process.start()
        writer.close()
        try:
            return self._await(reader, stop, time.monotonic() + wall_s)
        except EOFError:
            process.join(5.0)
            return None, f"exit {process.exitcode}"
        except OSError:
            return None, "oversized"
        finally:
            reader.close()
            process.kill()
            process.join()
            process.close()

    def _await(self, reader: Connection, stop: Event, deadline: float) -> tuple[bytes | None, str]:
        while not reader.poll(_LOOK_S):
            if stop.is_set():
                return None, "stopped"
            if time.monotonic() > deadline:
                return None, "timeout"
        return reader.recv_bytes(self._limits.reply_bytes), "answered"


def configure_logs() -> None:
    """Write this process's log as one JSON object a line to standard error; no exception text is ever rendered."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def coded(text: str) -> str:
    """Return `text` if it is a refusal code with allow-listed fields, else the code for an internal error.

    This is the last gate before an error leaves the site: whatever produced `text`, no other words pass.
    """
    match = _CODED.fullmatch(text)
    if match and match[1] in set(RefusalCode):
        return text
    return RefusalCode.INTERNAL.value


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide ``__main__`` from multiprocessing, which would import the daemon again in every child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _context_json(context: Context) -> str:
    return json.dumps({"run_id": context.run_id, "node_id": context.node_id, "node_config": dict(context.node_config)})


def _load_app(reference: str) -> ClientApp:
    module, _, attribute = reference.partition(":")
    app = getattr(importlib.import_module(module), attribute)
    if not isinstance(app, ClientApp):
        msg = f"{reference} is no ClientApp"
        raise TypeError(msg)
    return app


def _probe(answer: Connection, app: str) -> None:
    """Child: say whether this process was forked warm and can load the app."""
    try:
        _load_app(app)
        warm = sys.modules.get(_WARM_MODULE)
        text = "warm" if warm is not None and warm.is_warm() else "cold"
    except (ImportError, AttributeError, TypeError) as error:
        text = f"{type(error).__name__}: {error}"
    answer.send_bytes(text.encode())


def _task(answer: Connection, app: str, message: bytes, context: str) -> None:
    """Child: run the app on one message and send back content or a code."""
    _settle()
    try:
        payload = _CONTENT + encode_content(_handle(app, decode_message(message), json.loads(context)))
    except Refusal as refusal:
        payload = _REFUSED + refusal.crossing().encode()
    except Exception as error:  # noqa: BLE001  (an error of any kind becomes a code; its text stays in this process)
        _report(error)
        payload = _REFUSED + RefusalCode.INTERNAL.value.encode()
    answer.send_bytes(payload)


def _handle(app: str, message: Message, context: dict[str, object]) -> RecordDict:
    config = cast("dict[str, str]", context["node_config"])
    run_id, node_id = cast("int", context["run_id"]), cast("int", context["node_id"])
    reply = _load_app(app)(message, Context(run_id, node_id, dict(config), RecordDict(), {}))
    if reply.has_error():
        raise _RepliedError(reply.error.reason or "")
    return reply.content


class _RepliedError(Refusal):
    """The app itself answered with an error; its text passes the same gate as any other."""

    def __init__(self, text: str) -> None:
        super().__init__(RefusalCode.INTERNAL)
        self._text = text

    def crossing(self) -> str:
        return coded(self._text)


def _settle() -> None:
    """Make the fork its own: the first to be killed when memory runs out, and no random state shared with siblings."""
    configure_logs()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    random.seed(os.urandom(16))
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4)))
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8)) >> 1)


def _report(error: BaseException) -> None:
    """Log where an exception came from, without its text: that may quote a patient's values."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    _log.error("task_failed", kind=type(error).__name__, where=where)
