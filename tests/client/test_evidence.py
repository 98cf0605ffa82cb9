"""Evidence for an auditor who has only a file: whole, signed, and able to show what a site alone cannot."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.budget import Budget
from fedward_client.config import SiteConfig
from fedward_client.evidence import FORMAT, build_pack, check_pack, compare, read_anchor, read_pack
from fedward_client.policy import Policy
from fedward_client.syslog_message import message
from fedward_common import __version__
from fedward_common.audit import AuditLog
from fedward_common.canonical import digest
from fedward_common.errors import LocalDataError, Refusal
from tests.client.ledger_cases import ICU, NOW, A, B, granted, people, released, reserved

CONFIG = SiteConfig(site="north")
LEDGER = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm")
LOG = ("audit.jsonl", "audit.head")


def worked(home: Path, rounds: int) -> Budget:
    """Let a site debit and let out so many rounds."""
    home.mkdir(exist_ok=True)
    budget = Budget(home)
    granted(budget)
    for round_ in range(1, rounds + 1):
        reserved(budget, round_)
        released(budget, round_)
    return budget


def pack_of(budget: Budget) -> dict[str, Any]:
    """Return the site's pack as an auditor reads it from a file."""
    return dict(json.loads(json.dumps(build_pack(budget, CONFIG, now=NOW))))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Budget:
    """Return a site that no test changes."""
    return worked(tmp_path_factory.mktemp("site"), 2)


@pytest.fixture(scope="module")
def pack(site: Budget) -> dict[str, Any]:
    return pack_of(site)


def test_a_pack_is_whole_and_says_whose_it_is(site: Budget, pack: dict[str, Any]) -> None:
    assert check_pack(pack) == []
    assert check_pack(pack, site.audit.public_key()) == []
    assert (pack["format"], pack["site"], pack["at"]) == (FORMAT, "north", NOW)
    assert pack["software"] == f"fedward {__version__}"
    assert pack["policy_sha256"] == digest(Policy().model_dump(mode="json"))
    assert [json.loads(line)["n"] for line in pack["lines"]] == [1, 2, 3, 4, 5]


def test_a_pack_sums_the_ledger_up(pack: dict[str, Any]) -> None:
    (account,) = pack["ledger"]["accounts"]

    assert (account["study"], account["cohorts"]) == (A, ["icu"])
    assert (account["rounds"], account["reserved"], account["released"]) == (3, 2, 2)
    assert 0 < account["epsilon"] < account["granted_epsilon"]
    assert pack["ledger"]["changes"] == 5


def test_a_pack_holds_nothing_of_a_patient(pack: dict[str, Any]) -> None:
    text = json.dumps(pack)

    assert not [code for code in ICU if people([code]).tobytes().hex() in text]


def test_a_pack_of_a_site_that_has_done_nothing_is_whole(tmp_path: Path) -> None:
    empty = pack_of(Budget(tmp_path))

    assert (empty["lines"], empty["head"]) == ([], None)
    assert check_pack(empty) == []


def test_a_pack_of_another_site_is_found(site: Budget, tmp_path: Path) -> None:
    other = pack_of(worked(tmp_path / "other", 1))

    assert check_pack(other) == []
    assert check_pack(other, site.audit.public_key())


Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "another site": lambda pack: pack.update(site="south"),
    "another policy": lambda pack: pack.update(policy_sha256="0" * 64),
    "another version": lambda pack: pack.update(software="fedward 9"),
    "less spent": lambda pack: pack["ledger"]["accounts"][0].update(epsilon=0.1),
    "fewer rounds": lambda pack: pack["ledger"]["accounts"][0].update(reserved=1),
    "no account": lambda pack: pack["ledger"].update(accounts=[]),
    "no ledger": lambda pack: pack.pop("ledger"),
    "no head": lambda pack: pack.update(head=None),
    "another head": lambda pack: pack["head"].update(n=4),
    "no signature": lambda pack: pack.pop("signature"),
    "a line less": lambda pack: pack["lines"].pop(),
    "a line changed": lambda pack: pack["lines"].__setitem__(1, pack["lines"][1].replace('"round":1', '"round":2')),
    "two lines moved": lambda pack: pack["lines"].reverse(),
    "lines of another kind": lambda pack: pack.update(lines=[1, None, {}]),
    "no lines": lambda pack: pack.update(lines=None),
    "a key more": lambda pack: pack.update(note="trust me"),
    "another key": lambda pack: pack.update(key="ed25519:" + "A" * 43),
    "no key": lambda pack: pack.pop("key"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_pack_is_found(pack: dict[str, Any], change: str) -> None:
    changed = copy.deepcopy(pack)
    CHANGES[change](changed)

    assert check_pack(changed)


@given(st.data())
def test_any_changed_letter_of_a_pack_s_file_is_found_or_says_the_same(
    site: Budget, pack: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(pack, ensure_ascii=False)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.characters(codec="utf-8")) + text[place + 1 :]

    try:
        value = json.loads(changed)
    except ValueError:
        return
    assert value == pack or check_pack(value, site.audit.public_key())


def test_ledger_and_log_of_a_pack_tell_the_same_or_it_is_found(tmp_path: Path) -> None:
    """A site that signs a ledger which lacks what its own log says."""
    budget = worked(tmp_path, 2)
    pack = build_pack(budget, CONFIG, now=NOW)
    pack["ledger"]["accounts"][0]["reserved"] = 1
    from fedward_client.evidence import _payload  # noqa: PLC0415  (to sign a lie as the site itself would)

    pack["signature"] = budget.audit.signature(_payload(pack))

    assert [finding.what for finding in check_pack(pack)] == [
        f"the log has 2 rounds of {A[:12]} reserved, the ledger 1"
    ]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"format": "fedward-audit-1"}', b"[" * 5000])
def test_what_is_no_pack_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pack.json"
    path.write_bytes(content)

    with pytest.raises(LocalDataError, match=r"pack\.json"):
        read_pack(path)


def test_a_pack_is_not_made_of_a_log_that_another_key_signed(tmp_path: Path) -> None:
    budget = worked(tmp_path / "site", 1)
    shutil.copy(tmp_path / "site" / "audit.head", tmp_path / "head")
    head = json.loads((tmp_path / "head").read_bytes())
    (tmp_path / "site" / "audit.head").write_text(json.dumps(head | {"n": 1}), encoding="utf-8")

    with pytest.raises(Refusal):
        build_pack(Budget(tmp_path / "site"), CONFIG, now=NOW)
    assert budget.ledger.summaries()


# ---------------------------------------------------------------------------------------------------- a copy elsewhere


def kept(home: Path, kind: str, path: Path) -> Path:
    """Keep a copy of the log elsewhere, of one of the three kinds that `read_anchor` takes."""
    budget = Budget(home)
    if kind == "pack":
        path.write_text(json.dumps(build_pack(budget, CONFIG, now=NOW), indent=1), encoding="utf-8")
    elif kind == "head":
        shutil.copy(home / "audit.head", path)
    else:
        lines = [b"Nov 23 12:00:00 siem " + message(entry, host="north") for entry in budget.audit.entries()]
        path.write_bytes(b"\n".join([b"something else", *lines, b""]))
    return path


@pytest.mark.parametrize("kind", ["pack", "head", "syslog"])
def test_ledger_and_log_put_back_together_are_found_with_a_copy_elsewhere(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    budget = worked(home, 1)
    shutil.copytree(home, tmp_path / "backup")
    reserved(budget, 2)
    anchor = read_anchor(kept(home, kind, tmp_path / "copy"))
    assert compare(budget.audit.lines(), anchor) == []
    for name in (*LEDGER, *LOG):
        (home / name).unlink(missing_ok=True)
        if (tmp_path / "backup" / name).exists():
            shutil.copy(tmp_path / "backup" / name, home / name)

    assert Budget(home).doubts() == []
    assert "put back" in compare(AuditLog(home).lines(), anchor)[0].what


@pytest.mark.parametrize("kind", ["pack", "head", "syslog"])
def test_log_written_anew_is_found_with_a_copy_elsewhere(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    budget = worked(home, 1)
    anchor = read_anchor(kept(home, kind, tmp_path / "copy"))
    (home / "audit.head").unlink()
    (home / "audit.jsonl").unlink()
    forged = AuditLog(home)
    for _ in range(9):
        forged.append("approved", at=NOW, study=B, person="nobody")

    assert forged.verify() == []
    assert "anew" in compare(forged.lines(), anchor)[0].what
    assert budget.ledger.summaries()


@pytest.mark.parametrize("kind", ["pack", "head", "syslog"])
def test_a_log_that_only_grew_is_the_one_that_the_copy_knows(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    budget = worked(home, 1)
    anchor = read_anchor(kept(home, kind, tmp_path / "copy"))

    reserved(budget, 2)

    assert compare(budget.audit.lines(), anchor) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"no entry here\n", b"\xff\xfe", b'{"lines": []}', b"[" * 5000])
def test_a_copy_that_says_nothing_is_no_comfort(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "copy"
    path.write_bytes(content)

    with pytest.raises(LocalDataError, match="no entry and no head"):
        read_anchor(path)


def test_a_copy_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalDataError, match="missing"):
        read_anchor(tmp_path / "missing")
