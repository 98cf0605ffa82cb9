"""Decisions on the disk: whole after kill -9, none lost between two writers, none read from a damaged file."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.approvals import MAX_WAITING, Approvals
from fedward_client.decisions import Decision
from fedward_common.errors import FedwardError, InstallationError, LocalDataError, SignatureError
from fedward_common.study import Study
from fedward_common.study_file import MAX_SIGNATURES, Signature, StudyFile
from tests.builders import small_study

AT = "2026-03-01T12:00:00+00:00"
YES = Decision("approved", "ann", AT, "chart", "f" * 64, "ann")
WRITER = """
import sys
from pathlib import Path
from fedward_client.approvals import Approvals
from fedward_client.decisions import Decision
from tests.builders import small_study
approvals, name = Approvals(Path(sys.argv[1])), sys.argv[2]
for number in range(int(sys.argv[3])):
    approvals.decide(small_study(), Decision("approved", f"{name}{number}", "2026-03-01T12:00:00+00:00"))
    approvals.propose(small_study(seed=number + 1))
    print(number, flush=True)
"""


@contextmanager
def writer(home: Path, name: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """Run another process that writes `count` decisions and says so after each."""
    root = str(Path(__file__).parents[2])
    arguments = [sys.executable, "-c", WRITER, str(home), name, str(count)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}) as made:
        try:
            yield made
        finally:
            made.kill()


def signed(study: Study, *keys: Ed25519PrivateKey) -> tuple[Signature, ...]:
    file = StudyFile(study)
    for key in keys:
        file = file.signed(key)
    return file.signatures


def test_proposed_study_is_kept_once_with_its_signatures(tmp_path: Path) -> None:
    study = small_study()
    signatures = signed(study, Ed25519PrivateKey.generate())
    approvals = Approvals(tmp_path)

    first, second = approvals.propose(study, signatures), approvals.propose(study, signatures)

    assert (first, second) == (True, False)
    (found,) = approvals.proposals()
    assert (found.study, found.signatures, found.decisions) == (study, signatures, ())


def test_signatures_that_come_later_are_added_up_to_a_bound(tmp_path: Path) -> None:
    study, approvals = small_study(), Approvals(tmp_path)
    signatures = signed(study, *(Ed25519PrivateKey.generate() for _ in range(MAX_SIGNATURES)))
    approvals.propose(study)

    for signature in (*signatures, *signatures, Signature("more", "more")):
        approvals.propose(study, [signature])

    assert approvals.proposals()[0].signatures == signatures


def test_decision_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    approvals, no = Approvals(tmp_path), Decision("withdrawn", "bob", AT, account="root")

    approvals.decide(small_study(), YES)
    approvals.decide(small_study(), no)
    approvals.decide(small_study(seed=2), YES)

    again = Approvals(tmp_path)
    assert again.decisions(small_study().digest) == (YES, no)
    assert again.decisions(small_study(seed=2).digest) == (YES,)
    assert again.decisions(small_study(seed=3).digest) == ()


def test_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.propose(small_study())
    approvals.decide(small_study(), YES)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.json")}

    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "studies").stat().st_mode) == 0o700


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    with writer(tmp_path, "a", 12) as one, writer(tmp_path, "b", 12) as two:
        assert (one.wait(60), two.wait(60)) == (0, 0)

    people = sorted(decision.by for decision in Approvals(tmp_path).decisions(small_study().digest))

    assert people == sorted(f"{name}{number}" for name in "ab" for number in range(12))
    assert len(Approvals(tmp_path).proposals()) == 12


def test_killed_writer_leaves_every_decision_that_it_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    for name, lines in (("a", 3), ("b", 7)):
        with writer(tmp_path, name, 10_000) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            process.wait()
        acknowledged += len(said)

        found = Approvals(tmp_path).decisions(small_study().digest)

        assert len(found) >= acknowledged
        assert len({decision.by for decision in found}) == len(found)
        assert Approvals(tmp_path).proposals()


def test_what_a_killed_writer_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.propose(small_study())
    half = [tmp_path / ".approvals.json.x1y2", tmp_path / "studies" / f".{small_study().digest}.json.abcd"]
    for path in half:
        path.write_text("{", encoding="utf-8")

    approvals.decide(small_study(), YES)

    assert not any(path.exists() for path in half)
    assert approvals.decisions(small_study().digest) == (YES,)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '"x"', '{"d": 1}', '{"d": [1]}', '{"d": [{}]}', '{"d": [{"answer": "approved"}]}',
        '{"d": [{"answer": "perhaps", "by": "ann", "at": "2026-03-01T12:00:00+00:00"}]}',
        '{"d": [{"answer": "approved", "by": "ann", "at": "yesterday"}]}',
        '{"d": [{"answer": "approved", "by": "ann", "at": "2026-03-01T12:00:00+00:00", "more": 1}]}',
        "\x80",
    ],
)  # fmt: skip
def test_damaged_decisions_approve_nothing_and_name_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "approvals.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(InstallationError, match=r"approvals\.json.*nothing is approved") as caught:
        Approvals(tmp_path).decisions("d")

    assert "restore it" in caught.value.remedy


def test_damaged_decisions_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "approvals.json").write_text("{", encoding="utf-8")

    with pytest.raises(InstallationError):
        Approvals(tmp_path).decide(small_study(), YES)

    assert (tmp_path / "approvals.json").read_text(encoding="utf-8") == "{"


def test_kept_study_that_somebody_edited_is_found_out(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.propose(small_study())
    path = tmp_path / "studies" / f"{small_study().digest}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["study"]["training"]["rounds"] = 999
    path.write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(SignatureError, match="was changed"):
        approvals.find("small")


def test_nobody_fills_the_disk_with_proposals_and_a_decision_makes_room(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    kept = [approvals.propose(small_study(seed=seed)) for seed in range(MAX_WAITING + 2)]

    approvals.decide(small_study(seed=0), Decision("denied", "ann", AT))

    assert kept == [True] * MAX_WAITING + [False] * 2
    assert approvals.propose(small_study(seed=MAX_WAITING + 5))
    assert not approvals.propose(small_study(seed=MAX_WAITING + 6))


def test_study_is_found_by_name_and_by_the_beginning_of_its_digest(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.propose(small_study())
    approvals.propose(small_study(name="other"))

    assert approvals.find("other").study.name == "other"
    assert approvals.find(small_study().digest[:10]).study == small_study()


def test_two_versions_of_a_name_must_be_told_apart(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    versions = [small_study(), small_study(seed=2)]
    for version in versions:
        approvals.propose(version)

    with pytest.raises(LocalDataError) as caught:
        approvals.find("small")

    assert all(version.digest[:12] in caught.value.message for version in versions)
    with pytest.raises(LocalDataError, match="0 studies"):
        approvals.find("nothing")


def test_another_account_than_the_folder_s_may_not_write_what_the_daemon_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(FedwardError) as caught:
        Approvals(tmp_path).decide(small_study(), YES)

    assert "sudo -u" in caught.value.remedy
    assert not (tmp_path / "approvals.json").exists()
