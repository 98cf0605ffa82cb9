"""Flower's internal names for being a run's ServerApp: the task, its token and its signs of life.

A `task_session` ends with its process. A `lasting_session` is written down, so that another process takes it over.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
from flwr.app import Context, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto import runtime_pb2
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, ValidationError

from fedward_common.errors import CoordinatorError, TransportError
from fedward_common.files import replace_file
from fedward_server.grid_flower_adapter import PATIENCE_S, CoordinatorGrid, RunEndedError, in_run, patient, translated

__all__ = ["INTERNAL_NAMES", "LastingSession", "lasting_session", "task_session"]

INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.common.constant": "SubStatus.COMPLETED SubStatus.FAILED",
    "flwr.common.serde": "context_from_proto context_to_proto run_from_proto",
    "flwr.supercore.interceptors": "RuntimeVersionHttpInterceptor SuperExecAuthHttpInterceptor",
    "flwr.supercore.run": "RunNotRunningException",
    "flwr.supercore.runtime": "RuntimeHttpClient.AcquireTask RuntimeHttpClient.PullTaskInput"
    " RuntimeHttpClient.PushTaskOutput RuntimeHttpClient.SendTaskHeartbeat",
    "flwr.supercore.task_identity": "TaskIdentity",
}
"""Module and names of all that is used here beyond Flower's public API."""

_ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
_HEARTBEAT_S: Final = 15.0
_ONE_SESSION = threading.Lock()

Input = runtime_pb2.PullTaskInputResponse


class _Ticket(BaseModel):
    """What makes a process the ServerApp of a run; `input` is what the SuperLink gives once, as Base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: int
    token: str
    input: str = ""


@dataclass
class LastingSession:
    """A run that this process is the ServerApp of, for now.

    Attributes:
        grid: its messages.
        context: what Flower's ServerApps are given.
        rejoined: whether an earlier process was its ServerApp before.
    """

    grid: CoordinatorGrid
    context: Context
    rejoined: bool
    over: bool = False

    def end(self) -> None:
        """Let the run be over once the session is left; nobody rejoins it."""
        self.over = True


@contextlib.contextmanager
def task_session(
    address: str, secret: bytes, run_id: int, *, patience_s: float = PATIENCE_S
) -> Iterator[tuple[CoordinatorGrid, Context]]:
    """Make this process the ServerApp of `run_id`: yield the grid and the context it needs.

    Heartbeats run meanwhile. On leaving, the run is reported completed, or failed if an exception passes through; of
    the exception only its type is told.

    Raises:
        CoordinatorError: no such task is waiting, another run's was, or this process is in a session already.
        TransportError: the SuperLink cannot be reached for `patience_s` seconds.
    """
    outcome, details = SubStatus.FAILED, "interrupted"
    with contextlib.ExitStack() as stack:
        _only_one(stack)
        acquired = _acquire(address, secret)
        if acquired is None or acquired[0] != run_id:
            msg = f"the ServerApp task of run {run_id} is not there to be acquired"
            raise CoordinatorError(msg, remedy="start each run once, and its session right after it")
        grid = CoordinatorGrid(address, acquired[1], patience_s=patience_s)
        stack.callback(grid.close)
        stack.enter_context(_heartbeats(grid))
        context = _begin(grid, _pull_input(grid))
        try:
            yield grid, context
            outcome, details = SubStatus.COMPLETED, ""
            grid.settle(wait=True)
        except BaseException as error:
            details = type(error).__name__
            raise
        finally:
            _push_output(grid, context, outcome, details)


@contextlib.contextmanager
def lasting_session(
    address: str, secret: bytes, ticket: Path, start_run: Callable[[], int], *, patience_s: float = PATIENCE_S
) -> Iterator[LastingSession]:
    """Make this process the ServerApp of the run that `ticket` names, or of another if there is none to go on with.

    The other is one that was started and that nobody has become the ServerApp of, or a new one: every run ships the
    same bundle.

    However the session is left, the run goes on at the SuperLink and the next process rejoins it, with the replies
    that this one was handed and had not confirmed; only after `LastingSession.end` is it over and the ticket gone.

    Args:
        address: host:port of the loopback listener.
        secret: the coordinator's secret.
        ticket: file, mode 0600: whoever reads it can be this run's ServerApp.
        start_run: creates a run and returns its id.
        patience_s: seconds that an outage may last.

    Raises:
        CoordinatorError: this process is in a session already.
        TransportError: the SuperLink cannot be reached for `patience_s` seconds, or gives a new run's task to nobody.
    """
    with contextlib.ExitStack() as stack:
        _only_one(stack)
        session = _rejoined(address, ticket, patience_s) or _joined(address, secret, ticket, start_run, patience_s)
        stack.callback(session.grid.close)
        stack.enter_context(_heartbeats(session.grid))
        yield session
        if session.over:
            session.grid.settle(wait=True)
            _push_output(session.grid, session.context, SubStatus.COMPLETED, "")
            ticket.unlink(missing_ok=True)


def _rejoined(address: str, path: Path, patience_s: float) -> LastingSession | None:
    """Return the session that a ticket stands for; None if there is none, or the SuperLink honours it no more."""
    try:
        ticket = _Ticket.model_validate_json(path.read_bytes())
        given = Input.FromString(base64.b64decode(ticket.input, validate=True))
    except (FileNotFoundError, ValidationError, binascii.Error, DecodeError):
        return None
    grid = CoordinatorGrid(address, ticket.token, patience_s=patience_s, resuming=True)
    with contextlib.ExitStack() as stack:
        stack.callback(grid.close)
        try:
            with in_run("the run cannot be rejoined"):
                grid._runtime_client.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest())  # noqa: SLF001  (as Flower's own caller)
            given = given if ticket.input else _pull_input(grid)
        except (CoordinatorError, RunEndedError):
            return None
        stack.pop_all()
    _write(path, ticket.run_id, ticket.token, given)
    return LastingSession(grid, _begin(grid, given), rejoined=True)


def _joined(address: str, secret: bytes, path: Path, start_run: Callable[[], int], patience_s: float) -> LastingSession:
    acquired = _acquire(address, secret)
    if acquired is None:
        start_run()
        acquired = _acquire(address, secret)
    if acquired is None:
        # A SuperLink that is killed while it gives the task away has given it, and nobody has the token.
        msg = "the task of a run that was started is not there to be acquired"
        raise TransportError(msg, remedy="start again; does another program use this SuperLink?")
    run_id, token = acquired
    _write(path, run_id, token, Input())
    grid = CoordinatorGrid(address, token, patience_s=patience_s)
    with contextlib.ExitStack() as stack:
        stack.callback(grid.close)
        given = _pull_input(grid)
        _write(path, run_id, token, given)
        stack.pop_all()
    return LastingSession(grid, _begin(grid, given), rejoined=False)


def _write(path: Path, run_id: int, token: str, given: Input) -> None:
    kept = Input(context=given.context, run=given.run, task_id=given.task_id) if given.task_id else Input()
    text = base64.b64encode(kept.SerializeToString()).decode("ascii")
    replace_file(path, _Ticket(run_id=run_id, token=token, input=text).model_dump_json().encode("ascii"), mode=0o600)


def _only_one(stack: contextlib.ExitStack) -> None:
    if not _ONE_SESSION.acquire(blocking=False):
        msg = "this process is the ServerApp of another run already"
        raise CoordinatorError(msg, remedy="one run for each process: Flower keeps the task's identity globally")
    stack.callback(_ONE_SESSION.release)


def _acquire(address: str, secret: bytes) -> tuple[int, str] | None:
    """Become the ServerApp of the oldest run that waits for one; return its number and the token, if there is any."""
    signer = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
    with (
        translated("the ServerApp task cannot be acquired"),
        RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"), signer],
            retry_invoker=patient(5),
        ) as client,
    ):
        response = client.AcquireTask(runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    return (int(response.task.run_id), str(response.token)) if response.HasField("task") else None


def _pull_input(grid: CoordinatorGrid) -> Input:
    with in_run("the run's input cannot be read"):
        return grid._runtime_client.PullTaskInput(runtime_pb2.PullTaskInputRequest())  # noqa: SLF001  (as Flower's own caller)


def _begin(grid: CoordinatorGrid, given: Input) -> Context:
    """Take the identity that Flower keeps for the whole process."""
    TaskIdentity.task_id = given.task_id
    TaskIdentity.run_id = given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    grid.set_run(run_from_proto(given.run))
    return context_from_proto(given.context)


def _push_output(grid: CoordinatorGrid, context: Context, outcome: str, details: str) -> None:
    grid._retry_invoker.max_time = 2.0  # noqa: SLF001  (leaving: the SuperLink may be gone already)
    context.state = RecordDict()  # state never leaves this process
    request = runtime_pb2.PushTaskOutputRequest(context=context_to_proto(context), sub_status=outcome, details=details)
    with contextlib.suppress(TransportError, httpx.HTTPError, RunNotRunningException):
        grid._runtime_client.PushTaskOutput(request)  # noqa: SLF001


@contextlib.contextmanager
def _heartbeats(grid: CoordinatorGrid) -> Iterator[None]:
    """Tell the SuperLink every 15 s that this process lives; failures are left to the grid's own calls to report."""
    stop = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError, TransportError, RunNotRunningException):
                grid._runtime_client.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest())  # noqa: SLF001
            if stop.wait(_HEARTBEAT_S):
                return

    thread = threading.Thread(target=beat, name="task-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)
