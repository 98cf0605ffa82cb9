"""A ClientApp that imports nothing heavy and misbehaves on request, for the runner and the daemon."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward_common.errors import Refusal, RefusalCode

CANARY = "patient-4711-haemoglobin-9.1"

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    answer = ConfigRecord({"home": str(context.node_config["fedward-home"])})
    answer["pid"] = os.getpid()
    answer["draw"] = random.getrandbits(60)
    answer["threads"] = len(list(Path("/proc/self/task").iterdir()))
    answer["files"] = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return Message(RecordDict({"hello": answer}), reply_to=message)


@app.train()
def train(message: Message, _: Context) -> Message:
    values = message.content.array_records["model"]["values"].numpy()
    return Message(RecordDict({"model": ArrayRecord({"values": Array(values + 1)})}), reply_to=message)


@app.query()
def misbehave(message: Message, _: Context) -> Message:
    match message.content.config_records["how"]["how"]:
        case "raise":
            raise ValueError(CANARY)
        case "refuse":
            raise Refusal(RefusalCode.BUDGET_EXCEEDED, CANARY, fields={"limit": 8})
        case "answer with an error":
            return Message(Error(2, CANARY), reply_to=message)
        case "exit":
            os._exit(3)
        case "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
        case "boast":
            return Message(RecordDict({"big": ArrayRecord({"values": Array(np.zeros(10**6))})}), reply_to=message)
    return Message(RecordDict(), reply_to=message)
