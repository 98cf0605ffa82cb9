"""The one exception tree of Fedward.

Roots name whose fault it is; leaves name what the reader does next::

    FedwardError
    ├── StudyError               the study is wrong: its author corrects it
    │   ├── UnknownKeyError      a key that no study has
    │   ├── SignatureError       bytes and signature do not belong together
    │   └── UnsafeModelError     a model in which one patient's gradient depends on others
    ├── LocalDataError           the hospital's own data: its own staff looks
    │   ├── SchemaMismatchError  rows or columns that break the declared schema
    │   └── SplitOverlapError    one patient on both sides of a split
    ├── Refusal                  a site says no, with a code (`RefusalCode`)
    ├── CoordinatorError         the centre sent, or did, something wrong
    │   ├── RejectedReply        one reply fails the gatekeeper's checks
    │   ├── QuorumLostError      too few sites are left to go on
    │   └── UnknownStudyError    the centre's book has no such study
    ├── AccessError              the centre does not let this caller, with a code (`AccessCode`)
    ├── EnrolmentError           the centre does not admit this site, with a code (`EnrolmentCode`)
    ├── TransportError           the wire: try again
    └── InstallationError        this computer lacks something
        └── WeightDeltaError     a step did not do to the weights what it was told

No message is built from a patient's values: a message is a template with names, counts and limits that
are declared in a study or a policy. `Refusal` alone crosses a site's border, and of it only the code and
the allow-listed fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Final

__all__ = [
    "AccessCode",
    "AccessError",
    "CoordinatorError",
    "EnrolmentCode",
    "EnrolmentError",
    "FedwardError",
    "InstallationError",
    "LocalDataError",
    "QuorumLostError",
    "Refusal",
    "RefusalCode",
    "RejectedReply",
    "SchemaMismatchError",
    "SignatureError",
    "SplitOverlapError",
    "StudyError",
    "TransportError",
    "UnknownKeyError",
    "UnknownStudyError",
    "UnsafeModelError",
    "WeightDeltaError",
    "refusal_of",
]


class FedwardError(Exception):
    """Root of everything that Fedward raises on purpose.

    Args:
        message: what is wrong, naming the key, the file and the limit; never a patient's value.
        remedy: what the reader can do about it, in one sentence; empty when nothing can be done.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def diagnostics(self) -> str:
        """Return the text for a person: the message and, on a second line, the remedy."""
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class StudyError(FedwardError):
    """The study contract is not valid; nothing was started."""

    code = "study_invalid"


class UnknownKeyError(StudyError):
    """A key that the study has no place for; the message names the nearest valid one."""

    code = "study_unknown_key"


class SignatureError(StudyError):
    """A signature is missing, of another key, or of other bytes."""

    code = "study_signature"


class UnsafeModelError(StudyError):
    """The model cannot be trained privately as it is; the message names each module and its reason."""

    code = "model_unsafe"


class LocalDataError(FedwardError):
    """Something about a hospital's own table; the message holds names and counts only."""

    code = "cohort_unreadable"


class SchemaMismatchError(LocalDataError):
    """Rows or columns break the declared schema.

    Args:
        message: see `FedwardError`.
        counts: broken rows for each rule, for example ``{"age: below 0 years": 3}``; no values.
    """

    code = "cohort_schema_mismatch"

    def __init__(self, message: str, *, counts: Mapping[str, int] | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.counts = dict(counts or {})


class SplitOverlapError(LocalDataError):
    """A patient identifier stands on both sides of a split, or a row stands twice across it."""

    code = "cohort_split_overlap"


class RefusalCode(StrEnum):
    """Why a site does not do what it was asked; the only words about a failure that leave it."""

    NO_PRIVACY_SECTION = "no_privacy_section"
    PRIVACY_REQUIRED = "privacy_required"
    POLICY_LIMIT = "policy_limit"
    BUDGET_EXCEEDED = "budget_exceeded"
    BUDGET_UNTRUSTED = "budget_untrusted"
    AUDIT_UNTRUSTED = "audit_untrusted"
    STUDY_CHANGED = "study_changed"
    STUDY_INVALID = "study_invalid"
    SITE_NOT_NAMED = "site_not_named"
    STUDY_UNSIGNED = "study_unsigned"
    SIGNER_UNKNOWN = "signer_unknown"
    SIGNATURE_INVALID = "signature_invalid"
    STUDY_NOT_ALLOWED = "study_not_allowed"
    SECURE_AGGREGATION_REQUIRED = "secure_aggregation_required"
    OUTSIDE_HOURS = "outside_hours"
    AWAITING_APPROVAL = "awaiting_approval"
    ROUND_REPLAYED = "round_replayed"
    ROUND_OUT_OF_RANGE = "round_out_of_range"
    MODEL_MISMATCH = "model_mismatch"
    MESSAGE_INVALID = "message_invalid"
    PROTOCOL_MISMATCH = "protocol_mismatch"
    COHORT_NOT_ALLOWED = "cohort_not_allowed"
    COHORT_MISSING = "cohort_missing"
    COHORT_MISMATCH = "cohort_mismatch"
    COHORT_EMPTY = "cohort_empty"
    COHORT_TOO_SMALL = "cohort_too_small"
    UPDATE_NOT_FINITE = "update_not_finite"
    UPDATE_OUT_OF_BOUNDS = "update_out_of_bounds"
    BUNDLE_NOT_PINNED = "bundle_not_pinned"
    MESSAGE_TYPE_NOT_ALLOWED = "message_type_not_allowed"
    MESSAGE_TOO_LARGE = "message_too_large"
    TASK_TIMED_OUT = "task_timed_out"
    TASK_CRASHED = "task_crashed"
    TASK_OUT_OF_MEMORY = "task_out_of_memory"
    TASK_DENIED = "task_denied"
    INTERNAL = "internal_error"


_REFUSAL_FIELDS: Final = frozenset({"key", "limit", "asked", "round", "rule_count"})


class Refusal(FedwardError):  # noqa: N818  (a decision, not a fault)
    """A site's no.

    Args:
        code: the reason, from the closed list `RefusalCode`.
        message: the longer text; it stays in the site's own log.
        remedy: see `FedwardError`; stays at the site as well.
        fields: what crosses with the code: names and public limits (``key``, ``limit``, ``asked``,
            ``round``, ``rule_count``) and nothing else.

    Raises:
        ValueError: a field is not on the allow-list.
    """

    code = "refused"

    def __init__(
        self,
        code: RefusalCode,
        message: str = "",
        *,
        remedy: str = "",
        fields: Mapping[str, str | int | float] | None = None,
    ) -> None:
        super().__init__(message or code.value, remedy=remedy)
        unknown = set(fields or {}) - _REFUSAL_FIELDS
        if unknown:
            msg = f"fields {sorted(unknown)} may not leave a site"
            raise ValueError(msg)
        self.reason = code
        self.fields = dict(fields or {})

    def crossing(self) -> str:
        """Return the text that may leave the site: the code and its allow-listed fields."""
        tail = " ".join(f"{key}={value}" for key, value in sorted(self.fields.items()))
        return f"{self.reason.value} {tail}".strip()


def refusal_of(error: FedwardError) -> Refusal:
    """Return what a site says when `error` keeps it from its work: a code; the message is for its own log."""
    match error:
        case Refusal():
            return error
        case SchemaMismatchError():
            return Refusal(RefusalCode.COHORT_MISMATCH, error.message, fields={"rule_count": len(error.counts)})
        case LocalDataError():
            return Refusal(RefusalCode.COHORT_MISSING, error.message, remedy=error.remedy)
        case _:
            return Refusal(RefusalCode.INTERNAL, error.message, remedy=error.remedy)


class CoordinatorError(FedwardError):
    """The centre sent, or did, something wrong."""

    code = "coordinator"


class RejectedReply(CoordinatorError):  # noqa: N818  (a verdict on a reply; "RejectedReplyError" would read as our fault)
    """One site's reply fails a check; it costs that site the round and nobody else."""

    code = "reply_rejected"

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


class QuorumLostError(CoordinatorError):
    """Fewer sites answered than the study's quorum; no model comes of this round."""

    code = "quorum_lost"


class UnknownStudyError(CoordinatorError):
    """The centre's book has no such study."""

    code = "study_unknown"


class AccessCode(StrEnum):
    """Why the centre does not do what a caller asks."""

    MISSING = "token_missing"
    WRONG = "token_wrong"
    EXPIRED = "token_expired"
    REVOKED = "token_revoked"
    RATE_LIMITED = "rate_limited"
    FORBIDDEN = "forbidden"


class AccessError(FedwardError):
    """The centre does not let this caller do this; nothing was changed.

    Args:
        reason: from the closed list `AccessCode`.
        message: see `FedwardError`; never a token.
        remedy: see `FedwardError`.
    """

    code = "access_denied"

    def __init__(self, reason: AccessCode, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason


class EnrolmentCode(StrEnum):
    """Why the centre does not enrol a site or renew its key."""

    REQUEST_INVALID = "request_invalid"
    RATE_LIMITED = "rate_limited"
    CLOCK_SKEW = "clock_skew"
    INVITE_UNKNOWN = "invite_unknown"
    INVITE_USED = "invite_used"
    INVITE_EXPIRED = "invite_expired"
    NAME_MISMATCH = "name_mismatch"
    SIGNATURE_INVALID = "signature_invalid"
    KEY_KNOWN = "key_known"
    KEY_UNKNOWN = "key_unknown"
    KEY_EXPIRED = "key_expired"
    SITE_REVOKED = "site_revoked"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    PROTOCOL_MISMATCH = "protocol_mismatch"


class EnrolmentError(FedwardError):
    """The centre and this site do not come together; nothing was changed at either.

    Args:
        reason: from the closed list `EnrolmentCode`.
        message: see `FedwardError`.
        remedy: see `FedwardError`.
    """

    code = "not_enrolled"

    def __init__(self, reason: EnrolmentCode, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason


class TransportError(FedwardError):
    """The wire failed; the same call may succeed later."""

    code = "transport"


class InstallationError(FedwardError):
    """A library, a port or a file that this computer should have is not there."""

    code = "installation"


class WeightDeltaError(InstallationError):
    """A training step did not change the weights as the optimiser was told; the message names the parameter."""

    code = "weights_not_trained"
