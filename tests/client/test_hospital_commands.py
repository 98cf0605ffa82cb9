"""``fedward client``: a hospital's staff from an empty folder to a withdrawn approval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedward_client.approvals import MAX_WAITING, Approvals
from fedward_client.cli import app
from fedward_client.site import Site
from fedward_common.errors import FedwardError
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.wire import read_refusal, write_roll_call, write_task
from tests.builders import small_study, table

RUNNER = CliRunner()


def _study(**changes: object) -> Study:
    return small_study(sites=["north", "south"], **changes)


def _call(home: Path, *arguments: str) -> Result:
    return RUNNER.invoke(app, [*arguments, "--home", str(home)])


def _answer(home: Path, study: Study, round_: int = 0) -> str | None:
    site = Site(home)
    content = write_task(study, round_, initial_weights(study)) if round_ else write_roll_call(study)
    return read_refusal(site.answer(content))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a new site whose policy admits a study without privacy, with one registered table."""
    folder = tmp_path / "home"
    assert _call(folder, "init", "north").exit_code == 0
    config = (folder / "site.yaml").read_text(encoding="utf-8")
    for strict, open_ in (
        ("require_signature: true", "require_signature: false"),
        ("require_privacy: true", "require_privacy: false"),
        ("min_patients: 20", "min_patients: 2"),
    ):
        config = config.replace(strict, open_)
    (folder / "site.yaml").write_text(config, encoding="utf-8")
    table(60, seed=1).to_csv(tmp_path / "chart.csv", index=False)
    assert _call(folder, "cohort", "add", "chart", str(tmp_path / "chart.csv")).exit_code == 0
    return folder


def test_init_explains_every_limit_and_overwrites_nothing(tmp_path: Path) -> None:
    home = tmp_path / "new"
    assert _call(home, "init", "north").exit_code == 0

    text = (home / "site.yaml").read_text(encoding="utf-8")
    again = _call(home, "init", "north")

    assert text.count("  # ") >= 10
    assert Site(home).config.policy.require_privacy
    assert isinstance(again.exception, FedwardError)
    assert (home / "site.yaml").read_text(encoding="utf-8") == text


def test_a_study_waits_until_it_is_approved_and_again_after_a_withdrawal(home: Path) -> None:
    study = _study()

    assert _answer(home, study) == "awaiting_approval"
    assert "waiting" in _call(home, "studies").stdout
    assert _call(home, "approve", study.name, "--cohort", "chart", "--by", "ann").exit_code == 0
    assert _answer(home, study) is None
    assert _answer(home, study, 1) is None
    assert _call(home, "withdraw", study.name, "--by", "ann").exit_code == 0
    assert _answer(home, study, 2) == "awaiting_approval"


def test_one_changed_byte_of_the_study_waits_again(home: Path) -> None:
    study = _study()
    _answer(home, study)
    _call(home, "approve", study.name, "--cohort", "chart", "--by", "ann")

    changed = Study.of(study.contract() | {"description": "another"})

    assert _answer(home, changed) == "awaiting_approval"
    assert _answer(home, study) is None


def test_one_changed_byte_of_the_cohort_waits_again(home: Path, tmp_path: Path) -> None:
    study = _study()
    _answer(home, study)
    _call(home, "approve", study.name, "--cohort", "chart", "--by", "ann")
    with (tmp_path / "chart.csv").open("a", encoding="utf-8") as file:
        file.write("\n")

    assert _answer(home, study) == "awaiting_approval"


def test_a_denied_study_is_refused_like_one_that_waits(home: Path) -> None:
    study = _study()
    _answer(home, study)

    assert _call(home, "deny", study.name, "--by", "ann").exit_code == 0
    assert _answer(home, study) == "awaiting_approval"
    assert "denied" in _call(home, "studies").stdout


def test_nobody_fills_the_disk_with_proposals(home: Path) -> None:
    for seed in range(1, MAX_WAITING + 4):
        assert _answer(home, _study(seed=seed)) == "awaiting_approval"

    assert len(Approvals(home).proposals()) == MAX_WAITING


def test_every_decision_is_in_the_log(home: Path) -> None:
    study = _study()
    _answer(home, study)
    _call(home, "approve", study.name, "--cohort", "chart", "--by", "ann")
    _answer(home, study)
    _answer(home, study, 1)

    events = [entry.event for entry in Site(home).audit.entries()]

    assert events == [
        "site made", "cohort registered", "proposed", "refused", "approved", "enrolled", "released",
    ]  # fmt: skip
    assert _call(home, "audit", "verify").exit_code == 0


def test_verify_fails_on_an_edited_log(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))

    result = _call(home, "audit", "verify")

    assert result.exit_code == 1
    assert "WRONG" in result.stdout


def test_verify_finds_a_ledger_that_was_put_back(home: Path) -> None:
    study = _private(home)
    backup = (home / "ledger.sqlite").read_bytes()
    assert _answer(home, study, 1) is None
    for part in home.glob("ledger.sqlite*"):
        part.unlink()
    (home / "ledger.sqlite").write_bytes(backup)

    result = _call(home, "audit", "verify")

    assert result.exit_code == 1
    assert "old copy" in result.stdout


def test_the_ledger_command_shows_what_was_spent(home: Path) -> None:
    study = _private(home)
    assert _answer(home, study, 1) is None

    text = _call(home, "ledger").stdout

    assert study.digest[:12] in text
    assert "spent ε" in text


def _private(home: Path) -> Study:
    from fedward_common.privacy import calibrated  # noqa: PLC0415  (two seconds that the other tests save)

    privacy = {"mechanism": "dp_sgd", "epsilon": 4.0, "delta": 1e-4, "clip_norm": 1.0}
    study = calibrated(_study(privacy=privacy))
    _answer(home, study)
    assert _call(home, "approve", study.name, "--cohort", "chart", "--by", "ann").exit_code == 0
    assert _answer(home, study) is None
    return study


def test_show_says_what_is_read_what_is_sent_and_what_it_costs(home: Path) -> None:
    study = _study()
    _answer(home, study)

    text = _call(home, "show", study.name).stdout

    assert study.digest in text
    assert "WITHOUT noise" in text
    assert all(column in text for column in study.cohort.columns)


def test_check_says_what_is_wrong_with_a_table_without_a_value(home: Path, tmp_path: Path) -> None:
    study = _study()
    _answer(home, study)
    broken = table(60, seed=1).drop(columns=[study.cohort.label.column])
    broken.to_csv(tmp_path / "broken.csv", index=False)
    _call(home, "cohort", "add", "broken", str(tmp_path / "broken.csv"))

    good = _call(home, "cohort", "check", "chart", "--study", study.name)
    bad = _call(home, "cohort", "check", "broken", "--study", study.name)

    assert good.exit_code == 0
    assert "60 rows" in good.stdout
    assert bad.exit_code == 1
    assert "fail" in bad.stdout
    assert "remedy" in bad.stdout


def test_an_exported_pack_is_complete(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"

    assert _call(home, "audit", "export", str(file)).exit_code == 0
    pack = json.loads(file.read_text(encoding="utf-8"))

    assert pack["format"] == "fedward-audit-2"
    assert len(pack["lines"]) == pack["head"]["n"] == 2
