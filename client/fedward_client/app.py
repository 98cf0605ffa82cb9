"""The ClientApp: the one that the daemon, the local engine, Ray and a stock SuperNode all run."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward_client.site import Site
from fedward_common.errors import FedwardError, Refusal, RefusalCode
from fedward_common.wire import write_refusal

__all__ = ["HOME_KEY", "app", "respond"]

HOME_KEY = "fedward-home"

app = ClientApp()


def respond(content: RecordDict, home: Path) -> RecordDict:
    """Return the site's reply to one message; whatever goes wrong here leaves as a code and nothing more."""
    try:
        return Site(home).answer(content)
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
