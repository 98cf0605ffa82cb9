"""Everything that crosses a site's border, and nothing else does: four kinds of record content.

===========  =========  ==========================================================================
direction    content    holds
===========  =========  ==========================================================================
to a site    roll call  the study, whole, and its signatures
to a site    task       the study and its signatures, the round, the global model (float32, packed); of SCAFFOLD the
                        control variate behind it, and each site's last round that counted
from a site  enrolment  site, study digest, number of patients, version
from a site  update     site, study digest, round, weight, noised steps so far, update (int64, packed)
from a site  refusal    site, a code from `RefusalCode`, allow-listed fields
===========  =========  ==========================================================================

Every content is one record, the header; a vector travels inside it as bytes (`fedward_common.packing`), a long one in
further records. Sizes are bounded before anything is decoded. What a site reads wrong is a `Refusal`; what the centre
reads wrong is a `RejectedReply`. Both read every protocol that this release speaks (`fedward_common.protocol`) and turn
others away. The centre asks in the oldest of them; a site answers in the one that it was asked in. A refusal has one
form for ever, so that whoever speaks another protocol can say so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict

from fedward_common.control import controlled
from fedward_common.errors import Refusal, RefusalCode, RejectedReply, StudyError
from fedward_common.packing import VECTOR_KEYS, pack, part_names, unpack
from fedward_common.protocol import OURS, outdated
from fedward_common.study import Study
from fedward_common.study_file import MAX_SIGNATURES, Signature

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

PROTOCOL: Final = OURS.newest
MAX_STUDY_BYTES: Final = 1 << 20
_MAX_TEXT: Final = 256
_CROSSING: Final = re.compile(r"[a-z_]+( (asked|key|limit|round|rule_count)=[A-Za-z0-9_.+-]{1,64})*")
_HEADER: Final = "fedward"
_MODEL, _UPDATE = np.dtype("<f4"), np.dtype("<i8")
_METRICS: Final = frozenset({"loss"})
_ROLL_CALL_KEYS: Final = frozenset({"protocol", "study", "round", "signatures"})
_TASK_KEYS: Final = _ROLL_CALL_KEYS | VECTOR_KEYS
_COUNTED: Final = "counted"
_ENROLMENT_KEYS: Final = frozenset({"protocol", "site", "digest", "patients", "version"})
_UPDATE_KEYS: Final = frozenset({"protocol", "site", "digest", "round", "weight", "steps"}) | VECTOR_KEYS | _METRICS


@dataclass(frozen=True, slots=True)
class Task:
    """What a site is asked: round 0 is the roll call and carries no model. No signature has been verified yet.

    Attributes:
        study: the contract.
        round: 1-based; 0 for the roll call.
        weights: the packed global model.
        signatures: as they came.
        control: the centre's control variate, of the model's shape; None but for SCAFFOLD.
        protocol: that it was asked in.
        counted: by site, the last round whose update of it counts at the centre, 0 for none; empty but for SCAFFOLD.
    """

    study: Study
    round: int
    weights: npt.NDArray[np.float32] | None
    signatures: tuple[Signature, ...] = ()
    protocol: int = PROTOCOL
    control: npt.NDArray[np.float32] | None = None
    counted: Mapping[str, int] = field(default_factory=dict)


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


def write_roll_call(study: Study, signatures: Sequence[Signature] = ()) -> RecordDict:
    """Return the question whether a site can take part in `study`."""
    return RecordDict({_HEADER: _asking(study, signatures, 0)})


def write_task(
    study: Study,
    round_: int,
    weights: npt.NDArray[np.float32],
    signatures: Sequence[Signature] = (),
    *,
    control: npt.NDArray[np.float32] | None = None,
    counted: Mapping[str, int] | None = None,
) -> RecordDict:
    """Return the order to train round `round_` (1-based) from the packed global model.

    Args:
        study: the contract.
        round_: 1-based.
        weights: the packed global model.
        signatures: over the study.
        control: of SCAFFOLD, see `Task`; None: zero. Not sent for other rules.
        counted: of SCAFFOLD, see `Task`; a site that is not in it has none. Not sent for other rules.
    """
    if not controlled(study):
        vector, parts = pack(weights, _MODEL)
        return RecordDict({_HEADER: _asking(study, signatures, round_, **vector), **parts})
    vector, parts = pack(np.concatenate([weights, np.zeros_like(weights) if control is None else control]), _MODEL)
    header = _asking(study, signatures, round_, **vector)
    header[_COUNTED] = [(counted or {}).get(site, 0) for site in study.sites]
    return RecordDict({_HEADER: header, **parts})


def _asking(study: Study, signatures: Sequence[Signature], round_: int, **more: str | int | bytes) -> ConfigRecord:
    contract = study.canonical().decode("utf-8")
    header = ConfigRecord({"protocol": OURS.oldest, "study": contract, "round": round_, **more})
    if signatures:
        header["signatures"] = [f"{signature.key} {signature.signature}" for signature in signatures]
    return header


def read_task(content: RecordDict) -> Task:
    """Return what the centre asks; at the site.

    Raises:
        Refusal: ``protocol_mismatch``, ``message_invalid``, ``study_invalid``, ``round_out_of_range`` or
            ``model_mismatch``.
    """
    header, protocol = _task_header(content)
    text, round_ = header.get("study"), header.get("round")
    if not isinstance(text, str) or len(text) > MAX_STUDY_BYTES or type(round_) is not int:
        raise Refusal(RefusalCode.MESSAGE_INVALID, "study or round is missing, too long or of the wrong type")
    signatures = _signatures(header)
    try:
        study = Study.of(json.loads(text))
    except (StudyError, ValueError, RecursionError) as error:
        raise Refusal(RefusalCode.STUDY_INVALID, "the study does not validate here") from error
    if not 0 <= round_ <= study.training.rounds:
        raise Refusal(RefusalCode.ROUND_OUT_OF_RANGE, fields={"asked": round_, "limit": study.training.rounds})
    if round_ == 0:
        _refuse_more(content, _ROLL_CALL_KEYS)
        return Task(study, 0, None, signatures, protocol)
    from fedward_common.models import parameter_spec  # noqa: PLC0415  (models import study; keeps wire's own imports light)

    size, two = parameter_spec(study).size, controlled(study)
    length = size * (1 + two)
    _refuse_more(content, _TASK_KEYS | ({_COUNTED} if two else set()), part_names(length * _MODEL.itemsize))
    try:
        vector = unpack(content, header, dtype=_MODEL, length=length)
    except ValueError as error:
        raise Refusal(RefusalCode.MODEL_MISMATCH, str(error)) from error
    if not np.isfinite(vector).all():
        raise Refusal(RefusalCode.MODEL_MISMATCH, "the global model is not finite")
    if not two:
        return Task(study, round_, vector, signatures, protocol)
    return Task(study, round_, vector[:size], signatures, protocol, vector[size:], _counted(header, study, round_))


def _counted(header: ConfigRecord, study: Study, round_: int) -> dict[str, int]:
    """Return each site's last round that counted; only rounds before `round_` can have."""
    rounds = header.get(_COUNTED)
    if not isinstance(rounds, list) or len(rounds) != len(study.sites):
        raise Refusal(RefusalCode.MESSAGE_INVALID, "counted is no list of one round for each site")
    found = {site: r for site, r in zip(study.sites, rounds, strict=True) if type(r) is int and 0 <= r < round_}
    if len(found) < len(study.sites):
        raise Refusal(RefusalCode.MESSAGE_INVALID, "counted holds what is no earlier round")
    return found


def _task_header(content: RecordDict) -> tuple[ConfigRecord, int]:
    header = _header(content)
    protocol = header.get("protocol") if header is not None else None
    if header is None or type(protocol) is not int:
        raise Refusal(RefusalCode.MESSAGE_INVALID, "no header that names its protocol")
    if protocol not in OURS:
        older = "the coordinator" if protocol < PROTOCOL else "this site"
        remedy = f"upgrade Fedward at {older}"
        fields = {"asked": protocol, "limit": PROTOCOL}
        msg = f"protocol {protocol}, not {PROTOCOL}"
        raise Refusal(RefusalCode.PROTOCOL_MISMATCH, msg, remedy=remedy, fields=fields)
    return header, protocol


def _refuse_more(content: RecordDict, keys: frozenset[str], parts: Sequence[str] = ()) -> None:
    """Return if there are no other records, and no other entries in the header, than a task has."""
    if more := set(content) - {_HEADER, *parts}:
        raise Refusal(RefusalCode.MESSAGE_INVALID, f"{len(more)} records that no task has")
    if more := set(_header(content) or ()) - keys:
        raise Refusal(RefusalCode.MESSAGE_INVALID, f"{len(more)} entries that no task has")


def _signatures(header: ConfigRecord) -> tuple[Signature, ...]:
    """Return the signatures in a header, none where it has none; they are bounded here and verified by the policy."""
    lines = header.get("signatures", [])
    if not isinstance(lines, list) or len(lines) > MAX_SIGNATURES:
        raise Refusal(RefusalCode.MESSAGE_INVALID, f"signatures is no list of at most {MAX_SIGNATURES}")
    if not all(isinstance(line, str) and len(line) <= _MAX_TEXT and line.count(" ") == 1 for line in lines):
        raise Refusal(RefusalCode.MESSAGE_INVALID, "a signature is not a key, a blank and a signature")
    return tuple(Signature(*str(line).split(" ")) for line in lines)


def write_enrolment(enrolment: Enrolment, *, protocol: int = PROTOCOL) -> RecordDict:
    """Return a site's yes to the roll call, in the protocol that it was asked in."""
    return RecordDict({
        _HEADER: ConfigRecord({
            "protocol": protocol,
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
    header = _reply_header(content, _ENROLMENT_KEYS)
    patients = _integer(header, "patients")
    if not 1 <= patients <= 1 << 40:
        check = "patients"
        raise RejectedReply(check, f"{patients} patients is not possible")
    return Enrolment(_string(header, "site"), _string(header, "digest"), patients, _string(header, "version"))


def write_update(update: Update, *, protocol: int = PROTOCOL) -> RecordDict:
    """Return one site's update of one round, in the protocol that it was asked in.

    Raises:
        ValueError: a metric that no site may send.
    """
    if not update.metrics.keys() <= _METRICS:
        msg = f"of metrics, only {', '.join(sorted(_METRICS))} may leave a site"
        raise ValueError(msg)
    vector, parts = pack(update.values, _UPDATE)
    header = ConfigRecord({
        "protocol": protocol,
        "site": update.site,
        "digest": update.digest,
        "round": update.round,
        "weight": update.weight,
        "steps": update.steps,
        **update.metrics,
        **vector,
    })  # fmt: skip
    return RecordDict({_HEADER: header, **parts})


def read_update(content: RecordDict, *, size: int) -> Update:
    """Return one site's update, decoded and bounded but not yet judged; at the centre.

    Args:
        content: the reply.
        size: number of parameters of the study's model.

    Raises:
        RejectedReply: protocol, names, type, length or a number in the header is wrong.
    """
    header = _reply_header(content, _UPDATE_KEYS, part_names(size * _UPDATE.itemsize))
    try:
        values = unpack(content, header, dtype=_UPDATE, length=size)
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
        metrics=_metrics(header),
    )


def write_refusal(site: str, refusal: Refusal) -> RecordDict:
    """Return a site's no: the code and the allow-listed fields, never the message."""
    return RecordDict({
        _HEADER: ConfigRecord({"protocol": PROTOCOL, "site": site, "refusal": refusal.crossing()})
    })  # fmt: skip


def read_refusal(content: RecordDict) -> str | None:
    """Return the code and fields of a refusal as text, or None when the content is none; at the centre.

    Fields that no refusal has, or that hold more than names and numbers, are left out: the text is shown to people. Of
    two releases that do not work together, the text says which one to upgrade.
    """
    header = _header(content)
    text = header.get("refusal") if header is not None else None
    if not isinstance(text, str):
        return None
    code = text.split(" ", 1)[0]
    if code not in set(RefusalCode):
        return RefusalCode.INTERNAL.value
    return outdated(text) if len(text) <= _MAX_TEXT and _CROSSING.fullmatch(text) else code


def refusing_site(content: RecordDict) -> str:
    """Return the site that a refusal says it is from, unproven and cut to a readable length; at the centre."""
    header = _header(content)
    name = header.get("site") if header is not None else None
    return name[:_MAX_TEXT] if isinstance(name, str) else ""


def _reply_header(content: RecordDict, keys: frozenset[str], parts: Sequence[str] = ()) -> ConfigRecord:
    """Return the header of a reply that has these records, these entries and nothing else."""
    unknown = set(content) - {_HEADER, *parts}
    check = "names"
    if unknown:
        raise RejectedReply(check, f"{len(unknown)} records that no reply has")
    header = _header(content)
    protocol = header.get("protocol") if header is not None else None
    if header is None or type(protocol) is not int:
        check = "protocol"
        raise RejectedReply(check, "no header of this protocol")
    if protocol not in OURS:
        check, older = "protocol", "the site" if protocol < PROTOCOL else "the centre"
        facts = f"{RefusalCode.PROTOCOL_MISMATCH} asked={protocol} limit={PROTOCOL}"
        raise RejectedReply(check, f"{facts}: upgrade Fedward at {older}")
    if more := set(header) - keys:
        raise RejectedReply(check, f"{len(more)} entries that no such reply has")
    return header


def _header(content: RecordDict) -> ConfigRecord | None:
    """Return the header, if there is one. Not by Flower's `config_records`: its views keep the content in memory."""
    header = content.get(_HEADER)
    return header if isinstance(header, ConfigRecord) else None


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


def _metrics(header: ConfigRecord) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in _METRICS & set(header):
        value = header[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            check = "metrics"
            raise RejectedReply(check, "a metric is no finite number")
        metrics[name] = float(value)
    return metrics
