"""Hospitals that ask to be enrolled: real keys, real signatures, in memory."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.certificates import public_key_bytes, sign_as_node
from fedward_common.enrolment import EnrolRequest, RenewRequest
from fedward_common.signing import public_text, sign
from fedward_server.roster import Roster

__all__ = ["NOW", "Candidate", "make_roster"]

NOW = dt.datetime(2026, 11, 24, 12, 0, 0, tzinfo=dt.UTC)


def node_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@dataclass
class Candidate:
    """A hospital with its two keys."""

    name: str = "north"
    key: ec.EllipticCurvePrivateKey = field(default_factory=node_key)
    audit: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> str:
        return public_key_bytes(self.key).decode()

    def asks(self, token: str, at: dt.datetime = NOW, **changes: str) -> EnrolRequest:
        """Return a request to be enrolled; `changes` are made before it is signed."""
        values = {
            "site": self.name,
            "token": token,
            "node_key": self.public,
            "audit_key": public_text(self.audit.public_key()),
            "at": at.isoformat(),
        }
        request = EnrolRequest(**(values | changes), node_signature="A", audit_signature="A")
        signed = request.payload()
        signatures = {"node_signature": sign_as_node(self.key, signed), "audit_signature": sign(self.audit, signed)}
        return request.model_copy(update=signatures)

    def renews(self, new: ec.EllipticCurvePrivateKey, at: dt.datetime = NOW, **changes: str) -> RenewRequest:
        """Return a request to be known by another key; `changes` are made before it is signed."""
        values = {
            "site": self.name,
            "node_key": self.public,
            "new_key": public_key_bytes(new).decode(),
            "at": at.isoformat(),
        }
        request = RenewRequest(**(values | changes), node_signature="A", new_signature="A")
        signed = request.payload()
        signatures = {"node_signature": sign_as_node(self.key, signed), "new_signature": sign_as_node(new, signed)}
        return request.model_copy(update=signatures)

    def enrolled(self, roster: Roster, node: int = 7, *, days: int = 365) -> Candidate:
        """Return this hospital once `roster` knows it."""
        token = roster.invite(self.name, NOW, days=7)
        roster.enrol(self.asks(token), self.public, node, NOW, days=days)
        return self


def make_roster(folder: Path, key: Ed25519PrivateKey | None = None) -> Roster:
    """Return a roster on an empty file."""
    return Roster(folder / "roster.sqlite", key or Ed25519PrivateKey.generate())
