"""``fedward client studies|show|rehearse|approve|deny|withdraw|trust`` as a hospital's staff uses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

import fedward_client.commands.studies
from fedward_client.approvals import Approvals
from fedward_client.briefing import size_of
from fedward_client.cli import app
from fedward_client.commands.options import now
from fedward_client.config import SiteConfig, load_site, write_site
from fedward_client.decisions import Decision
from fedward_client.policy import Policy
from fedward_client.site import Site
from fedward_client.worker import InProcessWorker
from fedward_common.errors import FedwardError, Refusal, RefusalCode
from fedward_common.models import initial_weights
from fedward_common.signing import create_key, key_fingerprint, public_text
from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from fedward_common.wire import read_refusal, write_roll_call, write_task, write_update
from tests.builders import COHORT, open_policy, private_study, site_home, small_study, table, update

RUNNER = CliRunner()
CENTRE = Ed25519PrivateKey.generate()
KEY = public_text(CENTRE.public_key())
SIGNED_ONLY = open_policy(require_signature=True, signers={"centre": KEY})
STUDY, PRIVATE = small_study(), private_study()


def call(home: Path, *arguments: str) -> Result:
    return RUNNER.invoke(app, [*arguments, "--home", str(home)])


def text(home: Path, *arguments: str) -> str:
    """Return what a command prints, which must succeed."""
    result = call(home, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def plain(home: Path, *arguments: str) -> Any:
    return json.loads(text(home, *arguments, "--json"))


def error(home: Path, *arguments: str) -> FedwardError:
    result = call(home, *arguments)
    assert isinstance(result.exception, FedwardError), result.output
    return result.exception


def site(folder: Path, *studies: Study, policy: Policy | None = None) -> Path:
    """Return a site to which `studies`, signed by the centre, were proposed."""
    home = site_home(folder, policy=policy or open_policy())
    for study in studies:
        Approvals(home).propose(study, StudyFile(study).signed(CENTRE).signatures)
    return home


def answer(home: Path, study: Study, round_: int = 0) -> str | None:
    signatures = StudyFile(study).signed(CENTRE).signatures
    if round_:
        return read_refusal(Site(home).answer(write_task(study, round_, initial_weights(study), signatures)))
    return read_refusal(Site(home).answer(write_roll_call(study, signatures)))


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lets another account sit at the computer."""

    def sit(name: str) -> None:
        monkeypatch.setattr(fedward_client.commands.studies, "account", lambda: name)

    sit("ann")
    return sit


class Here(InProcessWorker):
    """A runner that computes in the test's own process: starting the daemon's takes seconds."""

    peak = 0

    def start(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedward_client.runner.Runner", Here)


def approve(home: Path, study: Study = STUDY) -> Result:
    return call(home, "approve", study.digest[:12], "--cohort", COHORT)


# ------------------------------------------------------------------------------------------------------------- studies
def test_list_of_a_new_site_says_that_there_is_nothing(tmp_path: Path) -> None:
    home = site(tmp_path)

    assert text(home, "studies") == "no study was proposed yet\n"
    assert plain(home, "studies") == []


@pytest.mark.usefixtures("person")
def test_list_shows_every_state_with_its_reason(tmp_path: Path) -> None:
    names = ("waiting", "approved", "denied", "withdrawn", "expired", "moved")
    studies = {name: small_study(name=name) for name in names} | {"changed": small_study(name="approved", seed=2)}
    home = site(tmp_path, *studies.values())
    for name in ("approved", "withdrawn", "moved"):
        assert approve(home, studies[name]).exit_code == 0
    call(home, "deny", "denied")
    call(home, "withdraw", "withdrawn")
    Approvals(home).decide(studies["expired"], Decision("approved", "ann", "2020-01-01T00:00:00+00:00", COHORT, "f"))
    Approvals(home).decide(studies["moved"], Decision("approved", "ann", now(), "gone", "f" * 64))

    states = {(row["name"], row["digest"]): row for row in plain(home, "studies")}

    found = {label: states[study.name, study.digest] for label, study in studies.items()}
    assert {label: row["state"] for label, row in found.items()} == {
        "waiting": "waiting", "approved": "approved", "denied": "denied", "withdrawn": "withdrawn",
        "expired": "expired", "moved": "changed", "changed": "changed",
    }  # fmt: skip
    assert studies["approved"].digest[:12] in found["changed"]["reason"]
    assert "cannot be read" in found["moved"]["reason"]
    assert found["expired"]["since"].startswith("2020-06-29")
    assert text(home, "studies").count("approved") >= 2


@pytest.mark.usefixtures("person")
@pytest.mark.parametrize("what", ["cohort", "study"])
def test_one_changed_byte_returns_to_pending_and_shows_as_changed(tmp_path: Path, what: str) -> None:
    home = site(tmp_path, STUDY)
    approve(home)
    assert answer(home, STUDY) is None
    study = STUDY
    if what == "cohort":
        with (home / f"{COHORT}.csv").open("a", encoding="utf-8") as file:
            file.write("\n")
    else:
        study = Study.of(STUDY.contract() | {"description": "."})

    assert answer(home, study) == "awaiting_approval"

    assert f"{study.digest[:12]}  changed" in text(home, "studies")
    assert "state: changed" in text(home, "show", study.digest[:12])


# ---------------------------------------------------------------------------------------------------------------- show
def test_show_tells_every_column_with_its_unit_and_range(tmp_path: Path) -> None:
    cohort = STUDY.cohort.model_dump(mode="json") | {"patient": "identifier"}
    study = small_study(cohort=cohort)
    home = site(tmp_path, study)

    found = text(home, "show", "small")
    reads = {line["name"]: (line["role"], line["says"]) for line in plain(home, "show", "small")["reads"]}

    assert reads == {
        "age": ("feature", "18 to 100 years"),
        "pressure": ("feature", "60 to 240 mmHg, may be missing: then 120"),
        "sex": ("feature", "f | m"),
        "stage": ("feature", "1 | 2 | 3"),
        "outcome": ("label", "no | yes; the outcome is yes"),
        "identifier": ("patient", "tells patients apart; it stays here"),
    }
    assert all(name in found for name in reads)
    assert "at most 8 rows of a patient" in found


def test_show_tells_how_many_must_answer_and_who_must_be_among_them(tmp_path: Path) -> None:
    free = plain(site(tmp_path / "free", STUDY), "show", "small")["works"]
    study = small_study(aggregation={"required_sites": ["south"]})
    bound = plain(site(tmp_path / "bound", study), "show", "small")["works"]

    assert "2 must answer;" in free
    assert "2 must answer, among them south;" in bound


def test_show_tells_what_is_sent_without_privacy(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY)

    facts, found = plain(home, "show", "small"), text(home, "show", "small")

    assert facts["metrics"] == ["loss"]
    assert [message["message"] for message in facts["sends"]] == ["enrolment", "update", "refusal"]
    assert "WITHOUT noise" in found
    assert "no privacy budget is kept" in found


@pytest.mark.parametrize("study", [STUDY, PRIVATE], ids=["plain", "private"])
def test_size_that_show_tells_is_that_of_the_message(tmp_path: Path, study: Study) -> None:
    home = site(tmp_path, study)
    metrics = {} if study is PRIVATE else {"loss": 0.5}
    sent = size_of(write_update(replace(update(study, site="north"), metrics=metrics)))

    facts = plain(home, "show", "small")

    (told,) = (message["size"] for message in facts["sends"] if message["message"] == "update")
    assert facts["metrics"] == list(metrics)
    assert told == pytest.approx(sent, abs=32)


def test_show_tells_what_a_private_study_costs_each_cohort(tmp_path: Path) -> None:
    home = site(tmp_path, PRIVATE, policy=open_policy(max_epsilon_lifetime=3, cohort_studies={"other": ()}))
    config = load_site(home)
    write_site(home, config.model_copy(update={"cohorts": {**config.cohorts, "other": config.cohorts[COHORT]}}))

    costs = {cost["cohort"]: cost for cost in plain(home, "show", "small")["costs"]}
    found = text(home, "show", "small")

    assert costs[COHORT]["epsilon"] == 8
    assert costs[COHORT]["lifetime"] > 3
    assert not costs[COHORT]["fits"]
    assert "DOES NOT FIT" in found
    assert "policy.cohort_studies does not give other to small" in costs["other"]["problem"]


@pytest.mark.usefixtures("person")
def test_cost_of_a_study_that_was_granted_already_is_not_counted_twice(tmp_path: Path) -> None:
    home = site(tmp_path, PRIVATE)
    (before,) = plain(home, "show", "small")["costs"]
    approve(home, PRIVATE)
    assert answer(home, PRIVATE) is None

    (after,) = plain(home, "show", "small")["costs"]

    assert after["lifetime"] == pytest.approx(before["lifetime"], rel=1e-6)


def test_show_names_who_signed(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY, policy=SIGNED_ONLY)
    stranger = StudyFile(STUDY).signed(Ed25519PrivateKey.generate()).signatures
    Approvals(home).propose(STUDY, stranger)

    assert "signed by: centre and 1 that policy.signers does not name" in text(home, "show", "small")
    assert plain(home, "show", "small")["signed_by"] == ["centre"]


@pytest.mark.usefixtures("person")
def test_show_tells_what_changed_since_the_version_that_was_approved_last(tmp_path: Path) -> None:
    old = private_study(training={"rounds": 2})
    new = small_study(
        privacy=PRIVATE.contract()["privacy"] | {"epsilon": 9},
        training={"rounds": 5},
        model={"name": "mlp", "hidden": [4]},
        seed=2,
    )
    home = site(tmp_path, old, new)
    assert "no other version" in text(home, "show", new.digest[:12])
    approve(home, old)

    found = text(home, "show", new.digest[:12])
    facts = plain(home, "show", new.digest[:12])

    assert facts["earlier"] == old.digest
    groups = {change["key"]: (change["group"], change["effect"]) for change in facts["changes"]}
    assert groups["training.rounds"] == ("training", "looser")
    assert groups["privacy.epsilon"] == ("privacy", "looser")
    assert groups["model.name"] == ("model", "")
    assert "training.rounds: 2 → 5  [looser for privacy]  (rounds of the whole study)" in found
    assert found.index("    model\n") < found.index("    training\n") < found.index("    privacy\n")


def test_show_tells_every_reason_for_which_the_policy_refuses(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY, policy=open_policy(max_rounds=1, require_privacy=True, studies=("other",)))

    found = text(home, "show", "small")

    assert "THIS SITE REFUSES IT" in found
    for words in ("study_not_allowed", "policy.max_rounds = 1", "policy.require_privacy is true"):
        assert words in found
    codes = [each["code"] for each in plain(home, "show", "small")["objections"]]
    assert codes == ["study_not_allowed", "policy_limit", "privacy_required"]


def test_study_file_can_be_looked_at_before_the_centre_sends_it(tmp_path: Path) -> None:
    home = site(tmp_path, policy=SIGNED_ONLY)
    file = tmp_path / "from-a-mail.json"
    file.write_bytes(StudyFile(STUDY).signed(CENTRE).dump())

    found = text(home, "show", str(file))

    assert STUDY.digest in found
    assert "signed by: centre" in found
    assert Approvals(home).proposals() == []


def test_study_file_can_be_approved_before_the_centre_sends_it(tmp_path: Path) -> None:
    home = site(tmp_path, policy=SIGNED_ONLY)
    file = tmp_path / "from-a-mail.json"
    file.write_bytes(StudyFile(STUDY).signed(CENTRE).dump())

    text(home, "approve", str(file), "--cohort", COHORT)

    (kept,) = Approvals(home).proposals()
    assert (kept.study, kept.signatures) == (STUDY, StudyFile(STUDY).signed(CENTRE).signatures)
    assert [decision.answer for decision in kept.decisions] == ["approved"]


def test_study_file_that_the_policy_refuses_is_neither_approved_nor_kept(tmp_path: Path) -> None:
    home = site(tmp_path, policy=SIGNED_ONLY)
    file = tmp_path / "unsigned.json"
    file.write_bytes(StudyFile(STUDY).dump())

    refused = error(home, "approve", str(file), "--cohort", COHORT)

    assert isinstance(refused, Refusal)
    assert refused.reason == RefusalCode.STUDY_UNSIGNED
    assert Approvals(home).proposals() == []


def test_forged_signature_in_a_study_file_is_told(tmp_path: Path) -> None:
    home = site(tmp_path, policy=SIGNED_ONLY)
    file = tmp_path / "forged.json"
    file.write_bytes(StudyFile(STUDY, StudyFile(small_study(seed=2)).signed(CENTRE).signatures).dump())

    found = text(home, "show", str(file))

    assert "signature_invalid" in found
    assert "THIS SITE REFUSES IT" in found


# ------------------------------------------------------------------------------------------------------------ decisions
def test_approval_is_recorded_with_person_account_cohort_and_time(tmp_path: Path, person: Any) -> None:
    home = site(tmp_path, STUDY)
    person("ann")

    result = call(home, "approve", "small", "--cohort", COHORT, "--by", "Dr. Ann Smith")

    assert result.exit_code == 0
    (made,) = Approvals(home).decisions(STUDY.digest)
    assert (made.answer, made.by, made.account, made.cohort) == ("approved", "Dr. Ann Smith", "ann", COHORT)
    entry = list(Site(home).audit.entries())[-1]
    assert entry.event == "approved"
    assert entry.fields["name"] == "Dr. Ann Smith (ann)"
    assert (entry.fields["study"], entry.fields["cohort"]) == (STUDY.digest, COHORT)


def test_two_person_rule_takes_two_accounts(tmp_path: Path, person: Any) -> None:
    home = site(tmp_path, STUDY, policy=open_policy(approvals_needed=2))

    first = approve(home)
    assert "approved 1 of 2" in first.stdout
    assert "approved 1 of 2" in text(home, "studies")
    assert answer(home, STUDY) == "awaiting_approval"
    again = error(home, "approve", "small", "--cohort", COHORT, "--by", "somebody else")
    assert "ann has approved this study already" in again.message
    assert answer(home, STUDY) == "awaiting_approval"
    person("bob")
    second = approve(home)

    assert second.stdout.startswith("approved: small")
    assert answer(home, STUDY) is None
    details = [e.fields.get("detail") for e in Site(home).audit.entries() if e.event == "approved"]
    assert details == ["1 of 2", "2 of 2"]


def test_withdrawal_works_from_the_next_round_on(tmp_path: Path, person: Any) -> None:
    home = site(tmp_path, STUDY)
    approve(home)
    assert answer(home, STUDY, 1) is None
    person("bob")

    assert call(home, "withdraw", "small", "--by", "bob").exit_code == 0

    assert answer(home, STUDY, 2) == "awaiting_approval"
    assert "withdrawn" in text(home, "studies")
    events = [(entry.event, entry.fields.get("name")) for entry in Site(home).audit.entries()]
    assert ("withdrawn", "bob") in events
    assert approve(home).exit_code == 0
    assert answer(home, STUDY, 3) is None


@pytest.mark.usefixtures("person")
def test_study_that_the_policy_refuses_cannot_be_approved(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY, policy=open_policy(max_rounds=1))

    refusal = error(home, "approve", "small", "--cohort", COHORT)

    assert isinstance(refusal, Refusal)
    assert "policy.max_rounds = 1" in refusal.message
    assert Approvals(home).decisions(STUDY.digest) == ()


@pytest.mark.usefixtures("person")
def test_study_cannot_be_approved_on_a_cohort_that_is_kept_for_others(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY, policy=open_policy(cohort_studies={COHORT: ("another",)}))

    refusal = error(home, "approve", "small", "--cohort", COHORT)

    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalCode.COHORT_NOT_ALLOWED


@pytest.mark.usefixtures("person")
def test_approval_is_not_in_force_where_the_log_cannot_take_it(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY)
    call(home, "deny", "small")
    log = home / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"denied", b"DENIED"))

    assert call(home, "approve", "small", "--cohort", COHORT).exit_code != 0

    assert [made.answer for made in Approvals(home).decisions(STUDY.digest)] == ["denied"]


# --------------------------------------------------------------------------------------------------- trust and rehearse
def test_trusted_key_lets_its_studies_in_and_is_in_the_log(tmp_path: Path, person: Any) -> None:
    person("ann")
    create_key(tmp_path / "centre.pem")
    home = tmp_path / "north"
    write_site(home, SiteConfig(site="north", policy=open_policy(require_signature=True)))

    found = text(home, "trust", "centre", str(tmp_path / "centre.pub"), "--by", "ann")

    key = (tmp_path / "centre.pub").read_text(encoding="ascii").strip()
    assert key_fingerprint(key) in found
    assert load_site(home).policy.signers == {"centre": key}
    (entry,) = Site(home).audit.entries()
    assert (entry.event, entry.fields["detail"]) == ("signer trusted", f"centre {key_fingerprint(key)}")


@pytest.mark.usefixtures("person")
def test_key_that_is_none_is_not_trusted(tmp_path: Path) -> None:
    home = site(tmp_path)

    assert "cannot be written" in error(home, "trust", "centre", "no key").message
    assert load_site(home).policy.signers == {}


def test_rehearsal_says_what_would_leave_and_whether_it_fits(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY)

    result = call(home, "rehearse", "small", "--rounds", "2", "--patients", "10")

    assert result.exit_code == 0
    for words in ("nothing was sent, nothing was spent", "update of round 2", "sha256", "fits this site", "memory:"):
        assert words in result.stdout


@pytest.mark.usefixtures("here")
def test_rehearsal_is_told_as_json_too(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY)

    facts = plain(home, "rehearse", "small", "--patients", "10")

    assert facts["good"]
    assert facts["patients"] == 10
    assert [message["message"] for message in facts["messages"]] == ["enrolment", "update"]


@pytest.mark.usefixtures("here")
def test_rehearsal_that_is_refused_fails_with_the_reason(tmp_path: Path) -> None:
    home = site(tmp_path, STUDY, policy=open_policy(max_rounds=1))

    result = call(home, "rehearse", "small")

    assert result.exit_code == 1
    assert "policy.max_rounds = 1" in result.stdout


@pytest.mark.usefixtures("here")
def test_no_cell_of_the_table_is_in_anything_that_is_shown(tmp_path: Path) -> None:
    frame = table(40)
    frame["age"] = [f"{18 + row}.47371" for row in range(40)]
    home = site_home(tmp_path, frame=frame, policy=open_policy())
    Approvals(home).propose(STUDY)

    shown = text(home, "show", "small") + text(home, "studies") + text(home, "rehearse", "small", "--patients", "5")

    assert "47371" not in shown
