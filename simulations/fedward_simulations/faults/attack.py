"""One attack on one production site: what happened before, what is sent, and the code that must come back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from fedward_client.policy import Policy
from fedward_common.errors import RefusalCode
from fedward_common.signing import public_text
from fedward_common.study import Study
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.faults.flower_adapter import Parcel
from fedward_simulations.faults.target import Target, Verdict, hostile_study

__all__ = ["AUTHOR", "STUDY", "Case", "Make", "attempt", "besieged", "hostile_bundle"]

Make = Callable[[Target], Parcel | RecordDict]
_MARK: Final = "imported"
AUTHOR: Final = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
STUDY: Final = hostile_study()
_LIMITS: Final[Mapping[str, Any]] = {
    "require_signature": False, "max_rounds": 10_000, "min_patients": 1,
    "signers": {"author": public_text(AUTHOR.public_key())},
}  # fmt: skip


def _nothing(_: Target) -> None:
    """Let nothing have happened before."""


@dataclass(frozen=True, slots=True)
class Case:
    """One attack.

    Attributes:
        code: what the site must say.
        make: makes what is sent.
        policy: limits that differ from those under which the honest message is accepted.
        prepare: what happened at the site before.
        study: the study that the site is asked about.
        approved: whether the site's staff has approved it.
    """

    code: RefusalCode
    make: Make
    policy: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Target], object] = _nothing
    study: Study = STUDY
    approved: bool = True

    @property
    def needs_a_site_of_its_own(self) -> bool:
        """Whether it leaves a site that later attacks would meet changed."""
        return bool(self.policy) or self.prepare is not _nothing or self.study is not STUDY or not self.approved


def attempt(case: Case, target: Target) -> Verdict:
    """Run one attack and return what came of it.

    Raises:
        SiteDownError: the site does not answer.
    """
    case.prepare(target)
    if case.policy:
        target.write_policy(Policy(**{**_LIMITS, **case.policy}))
    verdict = target.deliver(case.make(target))
    findings = tuple(finding.what for finding in target.log.verify())
    ran = ("the bundle's code ran",) if (target.folder / _MARK).exists() else ()
    return replace(verdict, faults=(*verdict.faults, *findings, *ran))


@contextmanager
def besieged(folder: Path, case: Case | None = None) -> Iterator[Target]:
    """Yield a site in `folder`, an empty folder, which still answers when the siege is over.

    Raises:
        SiteDownError: it does not.
    """
    study, approved = (case.study, case.approved) if case else (STUDY, True)
    foreign = hostile_bundle(folder / _MARK)
    with Target(folder, Policy(**_LIMITS), study, foreign=foreign, approved=approved) as target:
        yield target
        target.deliver(RecordDict())


def hostile_bundle(marker: Path) -> bytes:
    """Return a bundle that ships packages under names of ours; importing any of them leaves a mark."""
    content = io.BytesIO(code_free_bundle().content)
    with zipfile.ZipFile(content, "a") as archive:
        for name in ("fedward_client/__init__.py", "fedward_client/app.py", "sitecustomize.py", "usercustomize.py"):
            archive.writestr(name, f"open({str(marker)!r}, 'w')\n")
    return content.getvalue()
