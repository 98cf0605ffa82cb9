"""Whether a mutated message is still an honest one, decided apart from the site's own decoder.

Flower's decoder turns objects into records; the rest compares them with what an honest coordinator would have sent.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection
from enum import Enum
from typing import Any, Final

from flwr.app import ConfigRecord, RecordDict

from fedward_common.errors import StudyError
from fedward_common.study import Study
from fedward_common.wire import PROTOCOL
from fedward_simulations.faults.flower_adapter import COORDINATOR, Parcel, digest_of, inflated, tree_ids
from fedward_simulations.faults.superlink import FOREIGN_RUN

__all__ = ["Meaning", "meaning_of"]

_ASKED: Final = {"protocol", "study", "round"}
_MODEL: Final = {"dtype", "length", "vector"}
_MOST_SIGNATURES: Final = 8
_MOST_TEXT: Final = 256
_MOST_STUDY: Final = 1 << 20


class Meaning(Enum):
    """What a message is."""

    HOSTILE = "no honest coordinator sends it"
    ROLL_CALL = "an honest roll call"
    TASK = "an honest task for a round that is due"


def meaning_of(sent: Parcel, study: Study, node: int, parameters: int, spent: Collection[int]) -> Meaning:
    """Return what `sent` is to a site that has approved `study`.

    Args:
        sent: the message.
        study: what is approved.
        node: the site's node id.
        parameters: of the study's model.
        spent: rounds that were debited.
    """
    head = sent.metadata
    route = (head["src_node_id"], head["dst_node_id"]) == (COORDINATOR, node)
    if not route or head["message_type"] not in {"query", "train"} or head["run_id"] == FOREIGN_RUN:
        return Meaning.HOSTILE
    content = _content(sent)
    header = content.get("fedward") if content is not None else None
    if content is None or set(content) != {"fedward"} or not isinstance(header, ConfigRecord):
        return Meaning.HOSTILE
    return _asked(dict(header), study, parameters, spent)


def _content(sent: Parcel) -> RecordDict | None:
    if sent.tree is None or len(sent.tree[1]) != 1:
        return None
    for name in tree_ids(sent.tree):
        if name not in sent.objects or digest_of(sent.objects[name]) != name:
            return None
    announced = {name: sent.objects[name] for name in tree_ids(sent.tree)}
    try:
        return inflated(sent.tree[1][0][0], announced)
    except ValueError:
        return None


def _asked(header: dict[str, Any], study: Study, parameters: int, spent: Collection[int]) -> Meaning:
    signatures = header.pop("signatures", [])
    round_, protocol = header.get("round"), header.get("protocol")
    if type(round_) is not int or type(protocol) is not int or protocol != PROTOCOL or not _signatures(signatures):
        return Meaning.HOSTILE
    if not _same_study(header.get("study"), study):
        return Meaning.HOSTILE
    if round_ == 0:
        return Meaning.ROLL_CALL if set(header) == _ASKED else Meaning.HOSTILE
    due = max(spent, default=0) < round_ <= study.training.rounds
    honest = set(header) == _ASKED | _MODEL and _model(header, parameters)
    return Meaning.TASK if due and honest else Meaning.HOSTILE


def _signatures(lines: Any) -> bool:
    """Return whether these may stand there; the site trusts nobody and asks for none."""
    return (
        isinstance(lines, list)
        and len(lines) <= _MOST_SIGNATURES
        and all(isinstance(line, str) and len(line) <= _MOST_TEXT and line.count(" ") == 1 for line in lines)
    )


def _same_study(text: Any, study: Study) -> bool:
    if not isinstance(text, str) or len(text) > _MOST_STUDY:
        return False
    try:
        return Study.of(json.loads(text)).digest == study.digest
    except (StudyError, ValueError, RecursionError):
        return False


def _model(header: dict[str, Any], parameters: int) -> bool:
    vector, length = header["vector"], header["length"]
    if header["dtype"] != "<f4" or type(length) is not int or length != parameters or not isinstance(vector, bytes):
        return False
    return len(vector) == 4 * parameters and all(map(math.isfinite, struct.unpack(f"<{parameters}f", vector)))
