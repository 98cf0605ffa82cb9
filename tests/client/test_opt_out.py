"""Patients who opted out are in nothing that leaves, from the next round on, and in no file of the cache."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import EncodedCohort, OptOuts, TableEntry, open_cohort
from fedward_client.cohorts.identity import identities_of_names
from fedward_client.cohorts.opt_out import without_opted_out
from fedward_client.site import Site
from fedward_common.errors import LocalDataError
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.schema import CohortSchema
from fedward_common.tables import encode
from fedward_common.wire import read_enrolment, read_refusal, read_update, write_roll_call, write_task, write_update
from fedward_server.gatekeeper import Gatekeeper
from tests.builders import open_policy, site_home, small_study, table

STUDY = small_study(cohort={"patient": "patient"})
SCHEMA = STUDY.cohort
PLAIN = small_study().cohort


def frame() -> pd.DataFrame:
    return table(60, seed=4, patients=30)


def people() -> list[str]:
    return sorted(frame()["patient"].unique())


def cohort(home: Path, schema: CohortSchema = SCHEMA, *, source: bool = False) -> EncodedCohort:
    """Return the table under `schema`; with `source` its entry says that the export leaves out who opted out."""
    frame().to_csv(home / "t.csv", index=False)
    return open_cohort(TableEntry(table="t.csv", opt_outs_at_source=source), schema, home)


def cached(home: Path) -> list[Path]:
    return sorted((home / "cache").glob("*.npz"))


# ------------------------------------------------------------------------------------------------------------ the list
def test_without_a_list_nobody_opted_out(tmp_path: Path) -> None:
    assert OptOuts(tmp_path).identifiers() == frozenset()


def test_list_is_kept_for_its_owner_alone_one_identifier_a_line(tmp_path: Path) -> None:
    opt_outs = OptOuts(tmp_path)

    assert opt_outs.add(["p2", " p1 ", "p2", "", "7.0"]) == 3
    assert opt_outs.add(["p1"]) == 0
    assert opt_outs.remove(["7", "nobody"]) == 1

    path = tmp_path / "opt-out.txt"
    assert path.read_text(encoding="utf-8") == "p1\np2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["p1\r\np2\r\n", "\ufeffp1\np2", "\n p1\n\n\tp2 \n", "p2\np1\np1\n"])
def test_list_may_be_written_by_hand(tmp_path: Path, text: str) -> None:
    (tmp_path / "opt-out.txt").write_text(text, encoding="utf-8", newline="")

    assert OptOuts(tmp_path).identifiers() == {"p1", "p2"}


def test_list_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    """Nobody can say who may be used, so nobody is."""
    home = cohort(tmp_path)
    (tmp_path / "opt-out.txt").write_bytes(b"p1\n\xff\xfe\n")

    with pytest.raises(LocalDataError, match="no record may be used") as caught:
        home.patients(8)

    assert caught.value.remedy
    assert not cached(tmp_path)


def test_two_people_who_write_at_once_lose_nobody(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: [OptOuts(tmp_path).add([f"p{n}-{k}"]) for k in range(10)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(OptOuts(tmp_path).identifiers()) == 40


# ------------------------------------------------------------------------------------------------------------ the rows
def test_who_opted_out_is_not_among_the_patients(tmp_path: Path) -> None:
    gone, left = people()[:7], people()[7:]
    OptOuts(tmp_path).add(gone)

    found = cohort(tmp_path)

    assert (found.identities() == identities_of_names(left)).all()
    expected = encode(frame()[~frame()["patient"].isin(gone)].reset_index(drop=True), SCHEMA)
    patients = found.patients(64)
    assert len(patients) == len(left) == expected.patient_count
    assert patients.mask.sum() == len(expected.labels)
    for code in range(len(left)):
        assert (patients.features[code][patients.mask[code] == 1] == expected.features[expected.patients == code]).all()


def test_fingerprint_is_that_of_the_hospital_s_data_which_did_not_change(tmp_path: Path) -> None:
    before = cohort(tmp_path).fingerprint()

    OptOuts(tmp_path).add(people()[:3])

    assert cohort(tmp_path).fingerprint() == before


def test_a_broken_row_of_somebody_who_opted_out_breaks_nothing(tmp_path: Path) -> None:
    frame().assign(age=lambda f: f["age"].where(f["patient"] != people()[0], "999")).to_csv(
        tmp_path / "t.csv", index=False
    )
    OptOuts(tmp_path).add(people()[:1])

    assert len(open_cohort(TableEntry(table="t.csv"), SCHEMA, tmp_path).patients(8)) == len(people()) - 1


def test_numbers_match_however_table_and_list_write_them(tmp_path: Path) -> None:
    rows = table(4).assign(patient=[7, 8, 9, 10])
    rows.astype({"patient": float}).to_parquet(tmp_path / "t.parquet")
    OptOuts(tmp_path).add(["7", "8.0"])

    found = open_cohort(TableEntry(table="t.parquet"), SCHEMA, tmp_path)

    assert (found.identities() == identities_of_names(["10", "9"])).all()


def test_everybody_may_opt_out(tmp_path: Path) -> None:
    OptOuts(tmp_path).add(people())

    assert len(cohort(tmp_path).patients(8)) == 0


def test_a_list_without_a_column_that_tells_the_patient_stops_the_cohort(tmp_path: Path) -> None:
    assert len(cohort(tmp_path, PLAIN).patients(8)) == 60
    OptOuts(tmp_path).add(["p0001"])

    with pytest.raises(LocalDataError, match="no column says which rows belong to whom") as caught:
        cohort(tmp_path, PLAIN).patients(8)

    assert "patient_column" in caught.value.remedy
    assert "opt_outs_at_source" in caught.value.remedy


def test_the_hospital_may_say_that_its_export_leaves_them_out(tmp_path: Path) -> None:
    OptOuts(tmp_path).add(["p0001"])

    assert len(cohort(tmp_path, PLAIN, source=True).patients(8)) == 60


def test_the_register_s_column_tells_them_where_the_study_names_none(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    OptOuts(tmp_path).add(people()[:4])

    found = open_cohort(TableEntry(table="t.csv", patient_column="patient"), PLAIN, tmp_path)

    assert len(found.patients(64)) == len(people()) - 4


def test_a_table_without_the_patient_column_is_the_schema_s_to_refuse() -> None:
    rows = table(3)

    assert without_opted_out(rows, "patient", frozenset({"p1"})) is rows


# ----------------------------------------------------------------------------------------------------------- the cache
def held(home: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return every row that any file of the cache holds."""
    return np.concatenate([np.load(path)["features"] for path in cached(home)])


def rows_of(name: str) -> set[bytes]:
    mine = frame()[frame()["patient"] == name].reset_index(drop=True)
    others = frame()[frame()["patient"] != name].reset_index(drop=True)
    elsewhere = {row.tobytes() for row in encode(others, SCHEMA).features}
    return {row.tobytes() for row in encode(mine, SCHEMA).features} - elsewhere


def test_no_row_of_who_opted_out_stays_in_the_cache(tmp_path: Path) -> None:
    cohort(tmp_path).patients(8)
    gone = next(name for name in people() if rows_of(name))
    assert rows_of(gone) <= {row.tobytes() for row in held(tmp_path)}

    OptOuts(tmp_path).add([gone])
    assert not cached(tmp_path)
    cohort(tmp_path).patients(8)

    assert not rows_of(gone) & {row.tobytes() for row in held(tmp_path)}
    assert len(cached(tmp_path)) == 1


def test_a_list_that_was_written_by_hand_purges_the_cache_at_the_next_round(tmp_path: Path) -> None:
    cohort(tmp_path).patients(8)
    cohort(tmp_path, PLAIN, source=True).patients(8)
    gone = next(name for name in people() if rows_of(name))

    (tmp_path / "opt-out.txt").write_text(gone, encoding="utf-8")
    cohort(tmp_path).patients(8)

    assert not rows_of(gone) & {row.tobytes() for row in held(tmp_path)}


def test_rows_that_were_taken_out_of_the_table_leave_the_cache(tmp_path: Path) -> None:
    cohort(tmp_path).patients(8)
    gone = next(name for name in people() if rows_of(name))
    frame()[frame()["patient"] != gone].to_csv(tmp_path / "t.csv", index=False)

    open_cohort(TableEntry(table="t.csv"), SCHEMA, tmp_path).patients(8)

    assert not rows_of(gone) & {row.tobytes() for row in held(tmp_path)}


def test_two_studies_keep_their_rows_beside_each_other(tmp_path: Path) -> None:
    cohort(tmp_path).patients(8)
    cohort(tmp_path, PLAIN).patients(8)

    assert len(cached(tmp_path)) == 2


def test_one_cohort_sees_one_list(tmp_path: Path) -> None:
    """Who trains and who is debited are the same people, whenever the list changes."""
    found = cohort(tmp_path)
    count = len(found.patients(8))

    OptOuts(tmp_path).add(people()[:5])

    assert len(found.identities()) == count


# ----------------------------------------------------------------------------------------------------------- the round
def test_from_the_next_round_on_without_a_new_approval_and_the_coordinator_takes_it(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY, frame=frame())
    enrolled = read_enrolment(Site(home).answer(write_roll_call(STUDY)))
    gate = Gatekeeper(STUDY, {1: enrolled})

    def weight(round_: int) -> int:
        gate.open_round(round_)
        return gate.check(1, Site(home).answer(write_task(STUDY, round_, initial_weights(STUDY)))).weight

    assert weight(1) == enrolled.patients == len(people())
    OptOuts(home).add(people()[:3])
    assert weight(2) == enrolled.patients - 3
    OptOuts(home).remove(people()[:3])
    assert weight(3) == enrolled.patients


def test_nothing_of_who_opted_out_is_in_the_update(tmp_path: Path) -> None:
    """The same bytes as from a hospital that never had these patients."""
    gone = people()[:3]
    home = site_home(tmp_path / "a", STUDY, frame=frame())
    without = site_home(tmp_path / "b", STUDY, frame=frame()[~frame()["patient"].isin(gone)])
    OptOuts(home).add(gone)

    replies = [Site(h).answer(write_task(STUDY, 1, initial_weights(STUDY))) for h in (home, without)]

    one, other = (write_update(read_update(reply, size=parameter_spec(STUDY).size)) for reply in replies)
    assert one == other


def test_a_cohort_that_shrank_below_the_policy_s_minimum_is_refused(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY, frame=frame(), policy=open_policy(min_patients=len(people()) - 2))
    OptOuts(home).add(people()[:3])

    reply = Site(home).answer(write_task(STUDY, 1, initial_weights(STUDY)))

    assert str(read_refusal(reply)).startswith("cohort_too_small")
