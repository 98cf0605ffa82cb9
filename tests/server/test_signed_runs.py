"""The coordinator carries a study's signatures to every site with every message, and keeps them with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.policy import Policy
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.signing import public_text
from fedward_common.study_file import Signature, StudyFile, read_study_file
from fedward_common.wire import write_refusal
from fedward_server.coordinator import Coordinator
from fedward_server.report import REASONS
from fedward_server.result import RunResult
from tests.builders import open_policy, small_study
from tests.doubles import Behaviour, Rehearsal, Script, ScriptedGrid, says

SITES = ("north", "south", "west")
STUDY = small_study(sites=list(SITES))
CENTRE, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
SIGNED = StudyFile(STUDY).signed(CENTRE).signatures
STRICT = open_policy(require_signature=True, signers={"centre": public_text(CENTRE.public_key())})


def refuses(code: RefusalCode) -> Behaviour:
    return says(write_refusal("south", Refusal(code)))


def federation(folder: Path, policy: Policy) -> Rehearsal:
    return Rehearsal(STUDY, folder, policy=policy)


def run(sites: Rehearsal, *signatures: Signature, script: Script | None = None) -> tuple[RunResult, Path]:
    """Run the study once with these signatures; return the result and the run's folder."""
    folder = sites.root / f"signed-{len(list(sites.root.iterdir()))}"
    folder.mkdir()
    grid = ScriptedGrid(dict(sites.homes), script)
    coordinator = Coordinator(
        STUDY, sites.central, sites.predictor, folder, "rehearsal", clock=grid.clock, signatures=signatures
    )
    return coordinator.run(grid, grid.roster, poll_seconds=0), folder


def test_signed_study_runs_through_at_sites_that_require_a_signature(tmp_path: Path) -> None:
    result, folder = run(federation(tmp_path, STRICT), *SIGNED)

    assert result.status == "completed"
    assert all(site.rounds == 3 for site in result.sites.values())
    assert read_study_file(folder / "study.json").signatures == SIGNED


@pytest.mark.parametrize(
    ("signatures", "code"),
    [
        ((), "study_unsigned"),
        (StudyFile(STUDY).signed(STRANGER).signatures, "signer_unknown"),
        (StudyFile(small_study()).signed(CENTRE).signatures, "signature_invalid"),
    ],
)
def test_run_that_no_site_accepts_fails_with_each_site_s_reason(
    tmp_path: Path, signatures: tuple[Signature, ...], code: str
) -> None:
    result, _ = run(federation(tmp_path, STRICT), *signatures)

    assert result.status == "failed"
    assert {name: site.reason for name, site in result.sites.items()} == dict.fromkeys(SITES, code)
    assert result.model is None


def test_unsigned_study_runs_through_where_no_signature_is_required(tmp_path: Path) -> None:
    result, folder = run(federation(tmp_path, open_policy()))

    assert result.status == "completed"
    assert read_study_file(folder / "study.json").signatures == ()


def test_signatures_change_neither_the_digest_nor_the_model(tmp_path: Path) -> None:
    sites = federation(tmp_path, open_policy())

    (plain, one), (signed, two) = run(sites), run(sites, *SIGNED)

    assert plain.study.digest == signed.study.digest
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_site_outside_its_hours_misses_the_round_and_is_asked_again(tmp_path: Path) -> None:
    result, _ = run(federation(tmp_path, open_policy()), script={("south", 2): refuses(RefusalCode.OUTSIDE_HOURS)})

    assert result.status == "degraded"
    assert [entry.sites for entry in result.rounds] == [SITES, ("north", "west"), SITES]
    assert result.rounds[1].missing == {"south": "outside_hours"}


@pytest.mark.parametrize(
    "code", [RefusalCode.STUDY_UNSIGNED, RefusalCode.SIGNATURE_INVALID, RefusalCode.SIGNER_UNKNOWN]
)
def test_site_that_refuses_a_signature_in_the_middle_is_not_asked_again(tmp_path: Path, code: RefusalCode) -> None:
    result, _ = run(federation(tmp_path, open_policy()), script={("south", 2): refuses(code)})

    assert [entry.sites for entry in result.rounds] == [SITES, ("north", "west"), ("north", "west")]
    assert result.sites["south"].reason == code.value


@pytest.mark.parametrize(
    "code",
    [
        RefusalCode.STUDY_UNSIGNED, RefusalCode.SIGNER_UNKNOWN, RefusalCode.SIGNATURE_INVALID,
        RefusalCode.STUDY_NOT_ALLOWED, RefusalCode.COHORT_NOT_ALLOWED, RefusalCode.SECURE_AGGREGATION_REQUIRED,
        RefusalCode.OUTSIDE_HOURS,
    ],
)  # fmt: skip
def test_report_has_a_sentence_for_each_new_reason(code: RefusalCode) -> None:
    assert REASONS[code].endswith(".")
