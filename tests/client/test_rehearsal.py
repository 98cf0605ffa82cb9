"""A rehearsal goes the study's real way on patients who do not exist; the site is afterwards what it was."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.approvals import Proposal
from fedward_client.config import SiteConfig, load_site
from fedward_client.policy import Policy, Resources
from fedward_client.rehearsal import Rehearsal, rehearse
from fedward_client.runner import Runner
from fedward_common.errors import LocalDataError
from fedward_common.models import parameter_spec
from fedward_common.schema import CohortSchema
from fedward_common.signing import public_text
from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from tests.builders import open_policy, private_study, site_home, small_study

STUDY = small_study()
PRIVATE = private_study()
Play = Callable[..., Rehearsal]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """Return the daemon's own runner, started once."""
    with closing(Runner()) as made:
        made.start()
        yield made


@pytest.fixture
def play(runner: Runner) -> Play:
    """Return a function that rehearses a study under a policy."""

    def rehearsed(study: Study = STUDY, policy: Policy | None = None, **options: Any) -> Rehearsal:
        config = SiteConfig(site="north", policy=policy or open_policy())
        return rehearse(config, Proposal(study), runner, **({"patients": 12} | options))

    return rehearsed


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_would_have_left_is_told_message_by_message(play: Play) -> None:
    found = play(rounds=2)

    assert [(m.message, m.round) for m in found.messages] == [("enrolment", 0), ("update", 1), ("update", 2)]
    assert [m.metrics for m in found.messages] == [(), ("loss",), ("loss",)]
    assert all(len(m.sha256) == 64 and m.size > 8 * found.parameters for m in found.messages[1:])
    assert found.messages[1].sha256 != found.messages[2].sha256
    assert found.parameters == parameter_spec(STUDY).size
    assert found.good


def test_rehearsal_of_a_study_without_privacy_can_be_repeated_to_the_bit(play: Play) -> None:
    one, two, other = play(seed=3), play(seed=3), play(seed=4)

    assert one.messages[1].sha256 == two.messages[1].sha256 != other.messages[1].sha256


def test_private_study_trains_with_its_noise_and_its_ledger(play: Play) -> None:
    found = play(PRIVATE, rounds=3)

    assert [m.message for m in found.messages] == ["enrolment", "update", "update", "update"]
    assert all(m.metrics == () for m in found.messages)
    assert found.good


def test_time_and_memory_are_measured(play: Play) -> None:
    found = play()

    (update,) = found.messages[1:]
    assert 0 < update.step_seconds * STUDY.training.local_steps <= update.seconds
    assert found.memory_bytes > 1 << 20


def test_site_s_folder_is_not_touched(tmp_path: Path, runner: Runner) -> None:
    home = site_home(tmp_path, PRIVATE)
    before = contents(tmp_path)

    rehearse(load_site(home), Proposal(PRIVATE), runner, patients=12)

    assert contents(tmp_path) == before


def test_nothing_is_left_behind_and_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Play
) -> None:
    def forbidden(*_: object) -> None:
        pytest.fail("a rehearsal connects somewhere")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", forbidden)

    assert play().good
    assert list(tmp_path.iterdir()) == []


def test_policy_that_refuses_the_study_refuses_its_rehearsal_with_every_reason(play: Play) -> None:
    found = play(policy=open_policy(max_rounds=1, max_local_steps=1))

    (refusal,) = found.messages
    assert (refusal.message, refusal.round) == ("refusal", 0)
    assert refusal.refusal == "policy_limit asked=3 key=training.rounds limit=1"
    assert [each.fields["key"] for each in found.objections] == ["training.rounds", "training.local_steps"]
    assert not found.good


def test_budget_that_does_not_suffice_shows_in_the_rehearsal(play: Play) -> None:
    found = play(PRIVATE, open_policy(max_epsilon_lifetime=0.1))

    assert found.messages[0].refusal == "budget_exceeded limit=0.1"


def test_unsigned_study_is_refused_in_rehearsal_too_and_a_signed_one_is_played(play: Play, runner: Runner) -> None:
    key = Ed25519PrivateKey.generate()
    policy = open_policy(require_signature=True, signers={"centre": public_text(key.public_key())})
    config, signed = SiteConfig(site="north", policy=policy), StudyFile(STUDY).signed(key)

    assert play(policy=policy).messages[0].refusal == "study_unsigned"
    assert rehearse(config, Proposal(STUDY, signed.signatures), runner, patients=12).good


def test_hours_real_cohorts_and_the_second_person_do_not_hinder_a_rehearsal(play: Play) -> None:
    policy = open_policy(
        hours={"mon": ("03:00-03:01",)}, cohort_studies={"rehearsal": (), "chart": ()}, approvals_needed=2
    )

    assert play(policy=policy).good


def test_there_are_as_many_patients_as_the_policy_asks_for(play: Play) -> None:
    found = play(policy=open_policy(min_patients=40), patients=5)

    assert found.patients == 40
    assert found.good


def test_study_with_pictures_is_rehearsed_with_pictures(play: Play) -> None:
    image = {"kind": "image", "unit": "grey level", "height": 4, "width": 4, "minimum": 0, "maximum": 255}
    cohort = STUDY.cohort.model_dump(mode="json") | {"columns": {"scan": image}}
    study = small_study(cohort=CohortSchema.model_validate(cohort).model_dump(mode="json"))

    found = play(study)

    assert found.good
    assert found.parameters == 17


def test_more_rounds_than_the_study_has_are_no_rehearsal(play: Play) -> None:
    with pytest.raises(LocalDataError, match="3 rounds, not 4") as caught:
        play(rounds=4)

    assert "--rounds 3" in caught.value.remedy


def test_study_that_takes_too_long_for_the_site_is_ended_as_the_daemon_would(play: Play) -> None:
    found = play(policy=open_policy(resources=Resources(wall_s=1e-6)))

    assert not found.good
    assert found.messages[-1].refusal == "task_timed_out"


def test_facts_are_plain_json_values(play: Play) -> None:
    plain = play().plain()

    assert plain["good"] is True
    assert plain["resources"]["cpus"] == 1
    assert plain["messages"][1]["message"] == "update"
