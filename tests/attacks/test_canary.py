"""No value of any record is in anything that comes out of a hospital's daemon, whatever state its data are in."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.cohorts import CohortEntry, ImagesEntry, ImageSource
from fedward_simulations.faults.canary import campaign, main
from fedward_simulations.faults.canary_scenarios import RECORDS, SCENARIOS, Scenario
from fedward_simulations.faults.canary_traces import Traces, canary_name, canary_number, planted_table
from tests.pictures import dicom, digits_contract, digits_folder

ROOT = str(Path(__file__).parents[2])
NUMBERS = np.array([[canary_number(n, 1, 20), canary_number(n, 2, 100)] for n in range(RECORDS)])
ENCODED = (NUMBERS / 250).astype(np.float32)
NAME, AGE = canary_name(7, "name"), float(NUMBERS[7, 0])
WHOLE, WITHOUT_PRIVACY = SCENARIOS[:2]

# Every form in which a library could write a name or a number down.
FORMS: dict[str, bytes] = {
    "as it is": NAME.encode(),
    "in lower case": NAME.lower().encode(),
    "cut short": NAME[:12].encode(),
    "in JSON": f'{{"name": "{NAME}"}}'.encode(),
    "in UTF-16": NAME.encode("utf-16"),
    "in hexadecimal": NAME.encode().hex().encode(),
    "in Base64": base64.b64encode(NAME.encode()),
    "in Base64 after one byte": base64.b64encode(b"x" + NAME.encode()),
    "in Base64 after two bytes": base64.b64encode(b"xy" + NAME.encode()),
    "number in decimals": repr(AGE).encode(),
    "number with six decimals": f"{AGE:.6f}".encode(),
    "number in an array's print": str(np.array([AGE])).encode(),
    "number in Base64": base64.b64encode(f"age={AGE}".encode()),
    "double": struct.pack("<d", AGE),
    "double of another byte order": struct.pack(">d", AGE),
    "row of single precision": NUMBERS[7].astype("<f4").tobytes(),
    "row as the model is fed": ENCODED[7].tobytes(),
}


@pytest.fixture(scope="module")
def traces() -> Traces:
    return Traces(NUMBERS, ENCODED)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_canary_is_found_in_every_form_a_library_could_write(traces: Traces, form: str, before: int) -> None:
    rng = np.random.default_rng(before)
    data = rng.bytes(1000 + before) + FORMS[form] + rng.bytes(1000)

    assert traces.found_in(data)


def test_bytes_that_hold_no_canary_are_clean(traces: Traces) -> None:
    rng = np.random.default_rng(5)

    assert not traces.found_in(rng.bytes(1 << 20))
    assert not traces.found_in(repr(rng.normal(size=2000).tolist()).encode())


def test_every_field_of_every_record_that_can_hold_one_holds_another_canary() -> None:
    table = planted_table(RECORDS)
    planted = table.drop(columns=["stage", "outcome"]).astype(str).to_numpy().ravel().tolist()

    assert len(set(planted)) == len(planted) == 6 * RECORDS


def pictures(folder: Path) -> CohortEntry:
    """Write DICOM files whose header, name and row of the manifest each hold a canary."""
    table = digits_folder(folder / "scans", RECORDS)
    for record, name in enumerate(table["file"]):
        (folder / "scans" / name).unlink()
        text = canary_name(record, "header")
        tags: dict[str, Any] = {
            "PatientName": text,
            "PatientID": text,
            "PatientComments": text,
            "StudyDescription": text,
        }
        pixels = np.full((8, 8), record, dtype=np.uint16)
        (folder / "scans" / f"{canary_name(record, 'file')}.dcm").write_bytes(dicom(pixels, **tags))
    table["file"] = [f"{canary_name(record, 'file')}.dcm" for record in range(RECORDS)]
    table["patient"] = [canary_name(record, "patient") for record in range(RECORDS)]
    table["note"] = [canary_name(record, "note") for record in range(RECORDS)]
    table.to_csv(folder / "scans" / "manifest.csv", index=False)
    entry = ImagesEntry(
        images=str(folder / "scans"), manifest=str(folder / "scans" / "manifest.csv"), seal=str(folder / "seal.json")
    )
    ImageSource(entry, folder).seal()
    return entry


def cut_short(folder: Path) -> None:
    path = folder / "scans" / f"{canary_name(3, 'file')}.dcm"
    path.write_bytes(path.read_bytes()[:-40])


def sealed_again(folder: Path) -> None:
    cut_short(folder)
    entry = ImagesEntry(
        images=str(folder / "scans"), manifest=str(folder / "scans" / "manifest.csv"), seal=str(folder / "seal.json")
    )
    ImageSource(entry, folder).seal()


PICTURES: dict[str, Any] = {"plant": pictures, "cohort": digits_contract()}
OF_PICTURES = (
    Scenario("whole_scans", **PICTURES),
    Scenario("a_scan_changed", **PICTURES, spoil=cut_short, refused="awaiting_approval", late=True),
    Scenario("a_scan_cut_short", **PICTURES, spoil=sealed_again, refused="cohort_mismatch rule_count=1"),
)


@pytest.mark.reduced
@pytest.mark.deployed
def test_no_canary_comes_out_of_a_hospital_in_any_state_of_its_data(tmp_path: Path) -> None:
    outcome = campaign(tmp_path, (*OF_PICTURES, *SCENARIOS), slow={"text_among_numbers"})

    assert outcome["leaks"] == []
    assert outcome["unexpected"] == {}
    assert outcome["outputs"] > 20 * outcome["scenarios"]
    assert outcome["bytes"] > 1e6


@pytest.mark.deployed
@pytest.mark.parametrize(
    ("worker", "refused"), [("Raising", "internal_error"), ("Printing", None)], ids=["in an error", "on its streams"]
)
def test_what_a_library_says_of_a_patient_stays_in_its_process(
    worker: str, refused: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    scenario = Scenario("whole_csv", WHOLE.plant, refused=refused)

    outcome = campaign(tmp_path, [scenario], f"tests.leaking_workers:{worker}")

    assert outcome["leaks"] == []
    assert outcome["unexpected"] == {}


@pytest.mark.deployed
@pytest.mark.parametrize(
    ("worker", "where"), [("Telling", "request"), ("Logging", "the daemon's log")], ids=["in a reply", "in the log"]
)
def test_the_search_finds_a_worker_that_does_leak(
    worker: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: were something to leak, this campaign would say so."""
    monkeypatch.setenv("PYTHONPATH", ROOT)

    outcome = campaign(tmp_path, [WITHOUT_PRIVACY], f"tests.leaking_workers:{worker}")

    assert any(where in leak for leak in outcome["leaks"])


@pytest.mark.campaign
@pytest.mark.deployed
def test_no_canary_comes_out_of_any_command_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    assert '"leaks": []' in capsys.readouterr().out
