"""A site takes part in studies that somebody it trusts has signed, from the roll call to every single round."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from fedward_client.approvals import Approvals
from fedward_client.config import load_site, write_site
from fedward_client.decisions import Decision
from fedward_client.review import fingerprint_of
from fedward_client.site import Site
from fedward_common.models import initial_weights
from fedward_common.signing import public_text
from fedward_common.study import Study
from fedward_common.study_file import Signature, StudyFile
from fedward_common.wire import read_refusal, write_roll_call, write_task
from tests.builders import COHORT, open_policy, site_home, small_study

CENTRE, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
STUDY = small_study()
SIGNED = StudyFile(STUDY).signed(CENTRE).signatures
POLICY = open_policy(require_signature=True, signers={"centre": public_text(CENTRE.public_key())})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a site that trusts the centre's key and has approved the study."""
    return site_home(tmp_path, STUDY, policy=POLICY)


def ask(home: Path, signatures: tuple[Signature, ...], study: Study = STUDY, round_: int = 0) -> str | None:
    if round_:
        content: RecordDict = write_task(study, round_, initial_weights(study), signatures)
    else:
        content = write_roll_call(study, signatures)
    return read_refusal(Site(home).answer(content))


def test_signed_and_approved_study_enrols_and_trains(home: Path) -> None:
    assert ask(home, SIGNED) is None
    assert ask(home, SIGNED, round_=1) is None


@pytest.mark.parametrize("round_", [0, 1])
@pytest.mark.parametrize(
    ("signatures", "code"),
    [
        ((), "study_unsigned"),
        (StudyFile(STUDY).signed(STRANGER).signatures, "signer_unknown"),
        (StudyFile(small_study(seed=2)).signed(CENTRE).signatures, "signature_invalid"),
        ((Signature(SIGNED[0].key, StudyFile(STUDY).signed(STRANGER).signatures[0].signature),), "signature_invalid"),
    ],
    ids=["unsigned", "stranger", "of another study", "forged"],
)
def test_approval_does_not_excuse_a_missing_signature(
    home: Path, signatures: tuple[Signature, ...], code: str, round_: int
) -> None:
    """Each round is judged for itself: a coordinator that was taken over in the middle gets no further."""
    assert ask(home, SIGNED) is None

    assert ask(home, signatures, round_=round_) == code


@pytest.mark.parametrize("signatures", [(), StudyFile(STUDY).signed(STRANGER).signatures])
def test_unsigned_study_is_refused_before_anything_is_opened_or_kept(
    tmp_path: Path, signatures: tuple[Signature, ...]
) -> None:
    home = site_home(tmp_path, policy=POLICY)
    (home / f"{COHORT}.csv").unlink()
    (home / "approvals.json").write_text("not read", encoding="utf-8")

    assert ask(home, signatures) in {"study_unsigned", "signer_unknown"}

    assert not (home / "studies").exists()
    assert not (home / "cache").exists()
    assert [entry.event for entry in Site(home).audit.entries()] == ["refused"]


def test_study_of_a_trusted_signer_that_the_policy_refuses_is_kept_for_the_staff(tmp_path: Path) -> None:
    home = site_home(tmp_path, policy=POLICY.model_copy(update={"max_rounds": 1}))

    assert ask(home, SIGNED) == "policy_limit asked=3 key=training.rounds limit=1"

    (kept,) = Approvals(home).proposals()
    assert (kept.study, kept.signatures) == (STUDY, SIGNED)
    assert [entry.event for entry in Site(home).audit.entries()] == ["proposed", "refused"]


def test_only_signatures_that_count_are_kept(tmp_path: Path) -> None:
    home = site_home(tmp_path, policy=POLICY)
    both = StudyFile(STUDY).signed(STRANGER).signed(CENTRE).signatures

    assert ask(home, both) == "awaiting_approval"

    assert Approvals(home).proposals()[0].signatures == SIGNED


def test_signer_who_is_no_longer_trusted_stops_the_next_round(home: Path) -> None:
    assert ask(home, SIGNED, round_=1) is None
    config = load_site(home)

    write_site(home, config.model_copy(update={"policy": config.policy.model_copy(update={"signers": {}})}))

    assert ask(home, SIGNED, round_=2) == "signer_unknown"


def test_hours_stop_the_round_and_not_the_study(home: Path) -> None:
    config = load_site(home)
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    another_day = {days[(datetime.now(UTC).weekday() + 3) % 7]: ("00:00-24:00",)}
    policy = config.policy.model_copy(update={"hours": another_day})
    write_site(home, config.model_copy(update={"policy": policy}))
    assert ask(home, SIGNED, round_=1) == "outside_hours"

    write_site(home, config)

    assert ask(home, SIGNED, round_=1) is None


def test_two_accounts_must_approve_where_the_policy_says_so(tmp_path: Path) -> None:
    home = site_home(tmp_path, policy=POLICY.model_copy(update={"approvals_needed": 2}))
    site = Site(home)
    site.approvals.propose(STUDY, SIGNED)
    fingerprint = fingerprint_of(site, STUDY, COHORT)

    def vote(account: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        site.approvals.decide(STUDY, Decision("approved", account, at, COHORT, fingerprint, account))

    vote("ann")
    vote("ann")
    assert ask(home, SIGNED) == "awaiting_approval"
    vote("bob")
    assert ask(home, SIGNED) is None


def test_expired_approval_waits_again(tmp_path: Path) -> None:
    home = site_home(tmp_path, policy=POLICY)
    site = Site(home)
    fingerprint = fingerprint_of(site, STUDY, COHORT)

    site.approvals.decide(STUDY, Decision("approved", "ann", "2020-01-01T00:00:00+00:00", COHORT, fingerprint))

    assert ask(home, SIGNED) == "awaiting_approval"


def test_cohort_that_the_policy_keeps_for_other_studies_is_not_opened(home: Path) -> None:
    config = load_site(home)
    policy = config.policy.model_copy(update={"cohort_studies": {COHORT: ("another",)}})
    write_site(home, config.model_copy(update={"policy": policy}))
    (home / f"{COHORT}.csv").unlink()

    assert ask(home, SIGNED) == "cohort_not_allowed"


def test_metric_that_the_policy_does_not_allow_stays(home: Path) -> None:
    task = write_task(STUDY, 1, initial_weights(STUDY), SIGNED)
    assert "loss" in Site(home).answer(task).config_records["fedward"]
    config = load_site(home)

    write_site(home, config.model_copy(update={"policy": config.policy.model_copy(update={"allowed_metrics": ()})}))

    assert "loss" not in Site(home).answer(task).config_records["fedward"]
