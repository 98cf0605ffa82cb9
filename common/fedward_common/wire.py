"""Everything that crosses a site's border, and nothing else does: four kinds of record content.

===========  =========  ==========================================================================
direction    content    holds
===========  =========  ==========================================================================
to a site    roll call  the study, whole
to a site    task       the study, the round, the global model (float32, packed)
from a site  enrolment  site, study digest, number of patients, version
from a site  update     site, study digest, round, weight, noised steps so far, update (int64, packed)
from a site  refusal    site, a code from `RefusalCode`, allow-listed fields
===========  =========  ==========================================================================

Sizes are bounded before anything is decoded. What a site reads wrong is a `Refusal`; what the centre reads
wrong is a `RejectedReply`.
"""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedward_common.errors import Refusal, RefusalCode, RejectedReply, StudyError
from fedward_common.study import Study

__all__ = [
    "MAX_STUDY_BYTES",
    "PROTOCOL",
    "Enrolment",
    "Task",
    "Update",
    "read_enrolment",
    "read_refusal",
    "read_task",
    "read_update",
    "refusing_site",
    "write_enrolment",
    "write_refusal",
    "write_roll_call",
    "write_task",
    "write_update",
]

PROTOCOL: Final = 1
MAX_STUDY_BYTES: Final = 1 << 20
_NPY_HEADER_BYTES: Final = 1024
_MAX_TEXT: Final = 256
_CROSSING: Final = re.compile(r"[a-z_]+( (asked|key|limit|round|rule_count)=[A-Za-z0-9_.+-]{1,64})*")
_HEADER, _MODEL, _UPDATE, _METRICS = "fedward", "model", "update", "metrics"


@dataclass(frozen=True, slots=True)
class Task:
    """What a site is asked: round 0 is the roll call and carries no model."""

    study: Study
    round: int
    weights: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A site's yes to the roll call; `patients` is the cohort's public size."""

    site: str
    digest: str
    patients: int
    version: str


@dataclass(frozen=True, slots=True)
class Update:
    """What one site returns for one round.

    Attributes:
        values: int64, shape (parameters,), `fixed_point.encode_weighted` of the change of the weights.
        weight: what it counts for; 1 to 2**20.
        steps: noised steps that the cohort's ledger holds for this study, this round's included; 0 without
            privacy. Whoever knows the study turns them into ε.
        metrics: named numbers; empty under differential privacy, where each would have to be paid for.
    """

    site: str
    digest: str
    round: int
    weight: int
    steps: int
    values: npt.NDArray[np.int64]
    metrics: dict[str, float]


def write_roll_call(study: Study) -> RecordDict:
    """Return the question whether a site can take part in `study`."""
    return RecordDict({_HEADER: ConfigRecord({"protocol": PROTOCOL, "study": _text(study), "round": 0})})


def write_task(study: Study, round_: int, weights: npt.NDArray[np.float32]) -> RecordDict:
    """Return the order to train round `round_` (1-based) from the packed global model."""
    header = ConfigRecord({"protocol": PROTOCOL, "study": _text(study), "round": round_})
    return RecordDict({_HEADER: header, _MODEL: ArrayRecord({_MODEL: Array(weights.astype(np.float32))})})


def _text(study: Study) -> str:
    return study.canonical().decode("utf-8")


def read_task(content: RecordDict) -> Task:
    """Return what the centre asks; at the site.

    Raises:
        Refusal: ``message_invalid``, ``study_invalid`` or ``model_mismatch``.
    """
    header = content.config_records.get(_HEADER)
    if header is None or header.get("protocol") != PROTOCOL:
        raise Refusal(RefusalCode.MESSAGE_INVALID, "no header of this protocol", remedy="upgrade the older side")
    text, round_ = header.get("study"), header.get("round")
    if not isinstance(text, str) or len(text) > MAX_STUDY_BYTES or type(round_) is not int:
        raise Refusal(RefusalCode.MESSAGE_INVALID, "study or round is missing, too long or of the wrong type")
    try:
        study = Study.of(json.loads(text))
    except (StudyError, ValueError, RecursionError) as error:
        raise Refusal(RefusalCode.STUDY_INVALID, "the study does not validate here") from error
    if not 0 <= round_ <= study.training.rounds:
        raise Refusal(RefusalCode.ROUND_OUT_OF_RANGE, fields={"asked": round_, "limit": study.training.rounds})
    if round_ == 0:
        return Task(study, 0, None)
    from fedward_common.models import parameter_spec  # noqa: PLC0415  (models import study; keeps wire's own imports light)

    try:
        weights = _vector(content, _MODEL, np.dtype(np.float32), parameter_spec(study).size)
    except ValueError as error:
        raise Refusal(RefusalCode.MODEL_MISMATCH, str(error)) from error
    if not np.isfinite(weights).all():
        raise Refusal(RefusalCode.MODEL_MISMATCH, "the global model is not finite")
    return Task(study, round_, weights)


def write_enrolment(enrolment: Enrolment) -> RecordDict:
    """Return a site's yes to the roll call."""
    return RecordDict({
        _HEADER: ConfigRecord({
            "protocol": PROTOCOL,
            "site": enrolment.site,
            "digest": enrolment.digest,
            "patients": enrolment.patients,
            "version": enrolment.version,
        })
    })  # fmt: skip


def read_enrolment(content: RecordDict) -> Enrolment:
    """Return a site's answer to the roll call; at the centre.

    Raises:
        RejectedReply: it is no such answer.
    """
    header = _reply_header(content, {_HEADER})
    patients = _integer(header, "patients")
    if not 1 <= patients <= 1 << 40:
        check = "patients"
        raise RejectedReply(check, f"{patients} patients is not possible")
    return Enrolment(_string(header, "site"), _string(header, "digest"), patients, _string(header, "version"))


def write_update(update: Update) -> RecordDict:
    """Return one site's update of one round."""
    header = ConfigRecord({
        "protocol": PROTOCOL,
        "site": update.site,
        "digest": update.digest,
        "round": update.round,
        "weight": update.weight,
        "steps": update.steps,
    })  # fmt: skip
    records: dict[str, Any] = {_HEADER: header, _UPDATE: ArrayRecord({_UPDATE: Array(update.values)})}
    if update.metrics:
        records[_METRICS] = MetricRecord(dict(update.metrics))
    return RecordDict(records)


def read_update(content: RecordDict, *, size: int) -> Update:
    """Return one site's update, decoded and bounded but not yet judged; at the centre.

    Args:
        content: the reply.
        size: number of parameters of the study's model.

    Raises:
        RejectedReply: names, dtype, shape, length or a number in the header is wrong.
    """
    header = _reply_header(content, {_HEADER, _UPDATE, _METRICS})
    try:
        values = _vector(content, _UPDATE, np.dtype(np.int64), size)
    except ValueError as error:
        check = "update"
        raise RejectedReply(check, str(error)) from None
    return Update(
        site=_string(header, "site"),
        digest=_string(header, "digest"),
        round=_integer(header, "round"),
        weight=_integer(header, "weight"),
        steps=_integer(header, "steps"),
        values=values,
        metrics=_metrics(content),
    )


def write_refusal(site: str, refusal: Refusal) -> RecordDict:
    """Return a site's no: the code and the allow-listed fields, never the message."""
    return RecordDict({
        _HEADER: ConfigRecord({"protocol": PROTOCOL, "site": site, "refusal": refusal.crossing()})
    })  # fmt: skip


def read_refusal(content: RecordDict) -> str | None:
    """Return the code and fields of a refusal as text, or None when the content is none; at the centre.

    Fields that no refusal has, or that hold more than names and numbers, are left out: the text is shown to people.
    """
    header = content.config_records.get(_HEADER)
    text = header.get("refusal") if header is not None else None
    if not isinstance(text, str):
        return None
    code = text.split(" ", 1)[0]
    if code not in set(RefusalCode):
        return RefusalCode.INTERNAL.value
    return text if len(text) <= _MAX_TEXT and _CROSSING.fullmatch(text) else code


def refusing_site(content: RecordDict) -> str:
    """Return the site that a refusal says it is from, unproven and cut to a readable length; at the centre."""
    header = content.config_records.get(_HEADER)
    name = header.get("site") if header is not None else None
    return name[:_MAX_TEXT] if isinstance(name, str) else ""


def _reply_header(content: RecordDict, allowed: set[str]) -> ConfigRecord:
    unknown = set(content) - allowed
    if unknown:
        check = "names"
        raise RejectedReply(check, f"{len(unknown)} records that no reply has")
    header = content.config_records.get(_HEADER)
    if header is None or header.get("protocol") != PROTOCOL:
        check = "protocol"
        raise RejectedReply(check, "no header of this protocol")
    return header


def _string(header: ConfigRecord, key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise RejectedReply(key, f"{key} is no text of at most {_MAX_TEXT} characters")
    return value


def _integer(header: ConfigRecord, key: str) -> int:
    value = header.get(key)
    if type(value) is not int:
        raise RejectedReply(key, f"{key} is not a whole number")
    return value


def _metrics(content: RecordDict) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, value in content.metric_records.get(_METRICS, MetricRecord()).items():
        if name != "loss" or not isinstance(value, int | float) or not math.isfinite(value):
            check = "metrics"
            raise RejectedReply(check, "a metric that no site may send, or no finite number")
        metrics[name] = float(value)
    return metrics


def _vector(content: RecordDict, name: str, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
    """Return the one packed array under `name`; its length is checked before a byte is decoded.

    Raises:
        ValueError: a template that names what is wrong.
    """
    record = content.array_records.get(name)
    if record is None or set(record) != {name}:
        msg = f"expected one array named {name!r}"
        raise ValueError(msg)
    data = record[name].data
    if len(data) > size * dtype.itemsize + _NPY_HEADER_BYTES:
        msg = f"{len(data)} bytes are more than {size} parameters need"
        raise ValueError(msg)
    header = _npy_header(dtype, size)
    if data[: len(header)] != header:
        msg = f"the array is not {dtype} of shape ({size},) in NPY format 1.0"
        raise ValueError(msg)
    body = data[len(header) :]
    if len(body) != size * dtype.itemsize:
        msg = f"the array holds {len(body)} bytes, not {size * dtype.itemsize}"
        raise ValueError(msg)
    return np.frombuffer(body, dtype=dtype)


def _npy_header(dtype: np.dtype[Any], size: int) -> bytes:
    """Return the one header that NumPy writes for a packed vector; it is compared, so no foreign header is parsed."""
    stream = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()
