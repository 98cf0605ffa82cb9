"""A header holds the entries of the protocol and no other: what a site does not know, it does not pass over."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.models import parameter_spec
from fedward_common.wire import read_task, write_roll_call, write_task
from tests.builders import small_study

STUDY = small_study(model={"name": "mlp", "hidden": [3]})
SIZE = parameter_spec(STUDY).size


def header(content: RecordDict, **further: str) -> RecordDict:
    """Add entries to the header of a message."""
    content["fedward"] = ConfigRecord({**content.config_records["fedward"], **further})
    return content


@pytest.mark.parametrize("key", ["code", "vector", "length", "callback"])
def test_further_entry_in_a_roll_call_is_refused(key: str) -> None:
    content = header(write_roll_call(STUDY), **{key: "anything"})

    with pytest.raises(Refusal) as caught:
        read_task(content)

    assert caught.value.reason == RefusalCode.MESSAGE_INVALID


def test_further_entry_in_a_task_is_refused() -> None:
    content = header(write_task(STUDY, 1, np.zeros(SIZE, dtype=np.float32)), callback="https://elsewhere.example/")

    with pytest.raises(Refusal) as caught:
        read_task(content)

    assert caught.value.reason == RefusalCode.MESSAGE_INVALID
