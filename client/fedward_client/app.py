"""The border of a site, and the ClientApp that the local engine, Ray and a stock SuperNode run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward_client.site import Site
from fedward_client.worker import Worker
from fedward_common.errors import FedwardError, Refusal, RefusalCode
from fedward_common.wire import write_refusal

__all__ = ["HOME_KEY", "app", "refuse", "respond"]

HOME_KEY: Final = "fedward-home"

app = ClientApp()


def respond(content: RecordDict, home: Path, worker: Worker | None = None) -> RecordDict:
    """Return the site's reply to one message; whatever goes wrong here leaves as a code and nothing more.

    Args:
        content: the message's content, as it came.
        home: the site's folder.
        worker: who opens the cohort and trains; this process itself by default.
    """
    return _guarded(lambda: Site(home, worker).answer(content), home)


def refuse(refusal: Refusal, home: Path) -> RecordDict:
    """Return a refusal that was decided before the message's content was read, noted in the audit log."""
    return _guarded(lambda: Site(home).refuse(refusal), home)


def _guarded(reply: Callable[[], RecordDict], home: Path) -> RecordDict:
    try:
        return reply()
    except Refusal as refusal:  # the site cannot even note it: its log is not the one that it kept
        _report("site cannot answer", code=refusal.reason.value, message=refusal.message)
        return write_refusal(home.name, refusal)
    except FedwardError as error:
        _report("site cannot answer", code=error.code, message=error.message)
    except Exception as error:  # noqa: BLE001  (the border: an exception's text may hold a patient's value, and Flower would send it)
        _report("site failed", error=type(error).__name__)
    return write_refusal(home.name, Refusal(RefusalCode.INTERNAL))


def _report(event: str, **facts: str) -> None:
    """Log a fault without its traceback, which may quote a patient's value."""
    import structlog  # noqa: PLC0415  (an eighth of a second of start-up, for faults only)

    structlog.get_logger().error(event, **facts)


@app.query()
def roll_call(message: Message, context: Context) -> Message:
    """Answer whether this site can take part in the study."""
    return Message(respond(message.content, Path(str(context.node_config[HOME_KEY]))), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return Message(respond(message.content, Path(str(context.node_config[HOME_KEY]))), reply_to=message)
