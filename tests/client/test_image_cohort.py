"""A folder of pictures is used as it was registered or not at all, and trains as a table does."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import EncodedCohort, ImagesEntry, ImageSource, OptOuts, open_cohort
from fedward_client.cohorts.identity import identities_of_names
from fedward_client.cohorts.seal import Differences, compare, hash_folder, read_seal, write_seal
from fedward_client.config import SiteConfig, register_cohort, write_site
from fedward_client.site import Site, approve
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.fixed_point import decode_mean
from fedward_common.images import ImageFolder
from fedward_common.metrics import auroc
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.schema import CohortSchema
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_common.wire import read_refusal, read_update, write_roll_call, write_task
from fedward_server.evaluation import TorchPredictor
from tests.builders import open_policy, small_study
from tests.pictures import CANARY, DICOM, MEDMNIST, dicom, digits_contract, digits_folder, encoded

STUDY = small_study(cohort=digits_contract(), sites=["north", "south"])
SCHEMA = STUDY.cohort
OLD = 946_684_800  # 2000-01-01: the files' times are settled
BLACK = encoded(np.zeros((8, 8), dtype=np.uint8))


def entry(folder: Path, **changes: Any) -> ImagesEntry:
    facts = {"images": str(folder), "manifest": str(folder / "manifest.csv"), "seal": "seals/digits.json"}
    return ImagesEntry(**(facts | changes))


def registered(home: Path, count: int = 20, **changes: Any) -> ImagesEntry:
    """Write a folder of digits below `home`, seal it, and return its entry; its files look old."""
    digits_folder(home / "digits", count, per_patient=2)
    found = entry(home / "digits", **changes)
    ImageSource(found, home).seal()
    for path in (home / "digits").rglob("*"):
        os.utime(path, (OLD, OLD))
    return found


def cohort(home: Path, found: ImagesEntry, schema: CohortSchema = SCHEMA) -> EncodedCohort:
    return open_cohort(found, schema, home)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Change a file as a copy from elsewhere would, its time kept."""
    path = folder / name
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --------------------------------------------------------------------------------------------------------- what is read
def test_pictures_become_patients_in_the_manifest_s_order(tmp_path: Path) -> None:
    found = registered(tmp_path)
    frame = pd.read_csv(tmp_path / "digits" / "manifest.csv", dtype=str)
    expected = encode(frame, SCHEMA, ImageFolder(tmp_path / "digits"))

    patients = cohort(tmp_path, found).patients(8)

    assert patients.features.shape == (10, 2, 65)
    assert (patients.features.reshape(20, 65) == expected.features).all()
    assert (cohort(tmp_path, found).identities() == identities_of_names(sorted(set(frame["patient"])))).all()


def test_second_reading_opens_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = registered(tmp_path)
    first = cohort(tmp_path, found).patients(8)

    def never(*_: object, **__: object) -> None:
        pytest.fail("a picture was decoded again")

    monkeypatch.setattr("fedward_common.images.image_features", never)

    assert (cohort(tmp_path, found).patients(8).features == first.features).all()


def test_who_opted_out_is_left_out_even_when_the_files_are_gone(tmp_path: Path) -> None:
    found = registered(tmp_path)
    OptOuts(tmp_path).add(["p0000"])
    for name in ("part0/digit0000.png", "part1/digit0001.png"):
        (tmp_path / "digits" / name).unlink()

    assert len(cohort(tmp_path, found).patients(8)) == 9


def test_without_an_identifier_a_patient_is_who_is_in_the_picture(tmp_path: Path) -> None:
    """A file under another name, in another row, is the same person; another picture is not."""
    plain = SCHEMA.model_copy(update={"patient": None})
    digits_folder(tmp_path / "digits", 12)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "digits", other)
    frame = pd.read_csv(other / "manifest.csv", dtype=str)
    (other / "part0" / "digit0000.png").rename(other / "new name.png")
    frame.loc[0, "file"] = "new name.png"
    (other / "part1" / "digit0001.png").write_bytes(BLACK)
    frame.iloc[::-1].to_csv(other / "manifest.csv", index=False)
    entries = [entry(tmp_path / "digits"), entry(other, seal="seals/other.json")]
    for found in entries:
        ImageSource(found, tmp_path).seal()

    one, two = (cohort(tmp_path, found, plain).identities() for found in entries)

    assert (one == two[::-1]).all(axis=1).tolist() == [True, False] + [True] * 10


def test_a_column_that_the_register_does_not_call_files_opens_none(tmp_path: Path) -> None:
    """No study makes the site open what another column of the manifest says."""
    found = registered(tmp_path)
    renamed = {"columns": {"patient": digits_contract()["columns"]["file"]}, "patient": None}
    schema = small_study(cohort={**digits_contract(), **renamed}).cohort

    with pytest.raises(LocalDataError, match="'patient', which is none of file_columns"):
        cohort(tmp_path, found, schema).patients(8)


def test_two_pictures_a_row_are_read_side_by_side(tmp_path: Path) -> None:
    found = registered(tmp_path, file_columns=("file", "second"))
    manifest = tmp_path / "digits" / "manifest.csv"
    frame = pd.read_csv(manifest, dtype=str)
    frame.assign(second=frame["file"][::-1].tolist()).to_csv(manifest, index=False)
    image = digits_contract()["columns"]["file"]
    schema = small_study(cohort={**digits_contract(), "columns": {"file": image, "second": image}}).cohort

    features = cohort(tmp_path, found, schema).patients(8).features.reshape(20, 2, 64)

    assert (features[:, 0] == features[::-1, 1]).all()


def test_manifest_without_the_column_of_files_is_told(tmp_path: Path) -> None:
    found = registered(tmp_path, file_columns=("picture",))

    with pytest.raises(LocalDataError, match="no column 'picture' that names the files") as caught:
        cohort(tmp_path, found).patients(8)

    assert "--file-columns" in caught.value.remedy


def test_missing_manifest_and_folder_are_told(tmp_path: Path) -> None:
    found = registered(tmp_path)
    (tmp_path / "digits" / "manifest.csv").unlink()
    with pytest.raises(LocalDataError, match=r"manifest\.csv, the manifest, cannot be read"):
        cohort(tmp_path, found).fingerprint()

    shutil.rmtree(tmp_path / "digits")
    with pytest.raises(LocalDataError, match="the folder digits, or a file in it, cannot be read"):
        ImageSource(found, tmp_path).seal()


# ------------------------------------------------------------------------------------------------- as it was registered
@pytest.mark.parametrize("change", ["changed", "missing"])
def test_a_picture_that_is_not_what_was_registered_stops_the_cohort(tmp_path: Path, change: str) -> None:
    found = registered(tmp_path)
    before = cohort(tmp_path, found).fingerprint()
    if change == "changed":
        rewrite(tmp_path / "digits", "part0/digit0000.png", BLACK)
    else:
        (tmp_path / "digits" / "part0" / "digit0000.png").unlink()

    assert cohort(tmp_path, found).fingerprint() != before
    with pytest.raises(SchemaMismatchError, match="1 rows") as caught:
        cohort(tmp_path, found).patients(8)

    assert "digit" not in caught.value.diagnostics()


def test_an_added_picture_changes_the_fingerprint_and_is_not_used(tmp_path: Path) -> None:
    found = registered(tmp_path)
    before = cohort(tmp_path, found).fingerprint()
    (tmp_path / "digits" / "new.png").write_bytes(BLACK)

    assert cohort(tmp_path, found).fingerprint() != before
    assert len(cohort(tmp_path, found).patients(8)) == 10


def test_an_added_picture_that_the_manifest_names_stops_the_cohort_until_it_is_sealed(tmp_path: Path) -> None:
    found = registered(tmp_path)
    (tmp_path / "digits" / "new.png").write_bytes(BLACK)
    with (tmp_path / "digits" / "manifest.csv").open("a", encoding="utf-8") as file:
        file.write("new.png,p9999,40,no\n")

    with pytest.raises(SchemaMismatchError, match="not as it was when the folder was registered: 1 rows"):
        cohort(tmp_path, found).patients(8)
    ImageSource(found, tmp_path).seal()

    assert len(cohort(tmp_path, found).patients(8)) == 11


def test_a_changed_label_changes_the_fingerprint(tmp_path: Path) -> None:
    found = registered(tmp_path)
    before = cohort(tmp_path, found).fingerprint()
    manifest = tmp_path / "digits" / "manifest.csv"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(",yes", ",no", 1), encoding="utf-8")

    assert cohort(tmp_path, found).fingerprint() != before


def test_nothing_else_changes_the_fingerprint(tmp_path: Path) -> None:
    found = registered(tmp_path)
    before = cohort(tmp_path, found).fingerprint()
    folder = tmp_path / "digits"
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    (folder / "link.png").symlink_to("part0/digit0000.png")
    os.utime(folder / "part0" / "digit0000.png")
    ImageSource(found, tmp_path).seal()

    assert cohort(tmp_path, found).fingerprint() == before


def test_a_picture_that_changes_while_the_cohort_is_read_is_not_used(tmp_path: Path) -> None:
    """What is decoded are the bytes that were hashed, not the file that was."""
    found = registered(tmp_path)
    opened = cohort(tmp_path, found)
    opened.fingerprint()
    rewrite(tmp_path / "digits", "part0/digit0000.png", BLACK)

    with pytest.raises(SchemaMismatchError):
        opened.patients(8)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": "other", "files": {}}', '{"format": "fedward-seal-1"}', "[1]"]
)
def test_a_damaged_seal_stops_the_cohort(tmp_path: Path, content: str) -> None:
    found = registered(tmp_path)
    (tmp_path / "seals" / "digits.json").write_text(content, encoding="utf-8")

    with pytest.raises(LocalDataError, match=r"the seal digits\.json of an image folder cannot be read") as caught:
        cohort(tmp_path, found).patients(8)

    assert "cohort seal" in caught.value.remedy


def test_seal_is_its_owner_s_alone_since_names_of_files_may_be_patients(tmp_path: Path) -> None:
    registered(tmp_path)
    for path in (tmp_path / "seals" / "digits.json", tmp_path / "seals"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


# ----------------------------------------------------------------------------------------------------------- the hashes
def test_compare_counts_what_became_of_the_files() -> None:
    then = {"a": "1", "b": "2", "c": "3", "d": "4"}

    assert compare(then, {"a": "1", "b": "x", "d": "y", "e": "5"}) == Differences(changed=2, missing=1, added=1)
    assert not compare(then, dict(then))


def test_seal_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_seal(tmp_path / "a" / "seal.json", {"ä/b.png": "0" * 64})

    assert read_seal(tmp_path / "a" / "seal.json") == {"ä/b.png": "0" * 64}


def test_pictures_alone_are_hashed_by_their_place(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for name in ("a.png", "b.JPG", "c.dcm", "d", "x/e.jpeg", "notes.txt", ".hidden.png", ".git/f.png", "manifest.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "link").symlink_to("x")

    assert list(hash_folder(folder)) == ["a.png", "b.JPG", "c.dcm", "d", "x/e.jpeg"]
    assert list(hash_folder(folder, without=folder / "x" / ".." / "d")) == ["a.png", "b.JPG", "c.dcm", "x/e.jpeg"]


def test_what_was_hashed_is_not_read_again_and_what_changed_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(tmp_path, 4)
    folder, memory = tmp_path / "digits", tmp_path / "memory.json"
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return str(len(read))

    monkeypatch.setattr("fedward_client.cohorts.seal._hash", counting)
    monkeypatch.setattr("fedward_client.cohorts.seal._SETTLED_NS", 0)
    hash_folder(folder, memory=memory)
    assert len(read) == 4

    hash_folder(folder, memory=memory)
    assert len(read) == 4

    rewrite(folder, "part0/digit0002.png", BLACK)
    hash_folder(folder, memory=memory)
    assert read[4:] == ["digit0002.png"]


def test_a_file_that_was_changed_just_now_is_read_again(tmp_path: Path) -> None:
    """Within one tick of the file system's clock a second change leaves no trace in the times."""
    folder, memory = tmp_path / "f", tmp_path / "memory.json"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    first = hash_folder(folder, memory=memory)
    assert json.loads(memory.read_bytes() if memory.exists() else b"{}") == {}

    (folder / "a.png").write_bytes(b"2")

    assert hash_folder(folder, memory=memory) != first


def test_a_damaged_memory_costs_time_alone(tmp_path: Path) -> None:
    registered(tmp_path, 4)
    (tmp_path / "memory.json").write_text("{broken", encoding="utf-8")

    assert len(hash_folder(tmp_path / "digits", memory=tmp_path / "memory.json")) == 4


def test_a_name_that_is_no_utf8_is_told_without_showing_it(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/Mu\xfcller.png", "wb"):  # noqa: PTH123  (pathlib has no bytes)
        pass

    with pytest.raises(LocalDataError, match="no UTF-8") as caught:
        hash_folder(tmp_path)

    assert "ller" not in caught.value.diagnostics()


# -------------------------------------------------------------------------------------------------------------- a study
def site(folder: Path, found: ImagesEntry, study: Study) -> Path:
    home = folder / "home"
    write_site(home, SiteConfig(site="north", policy=open_policy(max_parameters=10_000_000)))
    ImageSource(found, home).seal()
    register_cohort(home, "digits", found)
    approve(home, study, "digits")
    return home


@pytest.mark.parametrize("model", [{"name": "linear"}, {"name": "mlp", "hidden": [8]}])
def test_a_site_trains_on_pictures_and_learns(tmp_path: Path, model: dict[str, Any]) -> None:
    """Sixty steps on 200 digits; a hundred others are told apart far better than by chance."""
    training = {"rounds": 1, "local_steps": 60, "sampling_rate": 1.0, "learning_rate": 0.5}
    study = small_study(cohort=digits_contract(), model=model, training=training)
    digits_folder(tmp_path / "digits", 200)
    home = site(tmp_path, entry(tmp_path / "digits"), study)

    assert read_refusal(Site(home).answer(write_roll_call(study))) is None
    weights = initial_weights(study)
    reply = read_update(Site(home).answer(write_task(study, 1, weights)), size=parameter_spec(study).size)

    frame = digits_folder(tmp_path / "others", 100, start=500)
    rows = encode(frame, study.cohort, ImageFolder(tmp_path / "others"))
    model_now = (weights + decode_mean(reply.values, reply.weight)).astype(np.float32)
    assert reply.weight == 200
    assert auroc(rows.labels, TorchPredictor(study, rows.features)(model_now)) > 0.75


def test_a_changed_picture_waits_for_a_new_approval(tmp_path: Path) -> None:
    digits_folder(tmp_path / "digits", 20)
    home = site(tmp_path, entry(tmp_path / "digits"), STUDY)
    rewrite(tmp_path / "digits", "part0/digit0000.png", BLACK)

    assert str(read_refusal(Site(home).answer(write_roll_call(STUDY)))).startswith("awaiting_approval")


def test_a_site_yaml_with_pictures_reads_as_it_was_written(tmp_path: Path) -> None:
    digits_folder(tmp_path / "digits", 4)
    found = entry(tmp_path / "digits", patient_column="patient", file_columns=("file", "other"))
    home = site(tmp_path, entry(tmp_path / "digits"), STUDY)

    register_cohort(home, "again", found)

    assert Site(home).config.cohorts["again"] == found


# ------------------------------------------------------------------------------------------------------------ real data
@pytest.mark.skipif(not MEDMNIST.is_dir(), reason="no medmnist below FEDWARD_DATA or ../shared/data")
def test_real_radiographs_train(tmp_path: Path) -> None:
    """PneumoniaMNIST, 28 x 28: children's chest radiographs, normal and pneumonia."""
    data = np.load(MEDMNIST / "pneumoniamnist.npz")
    rows = []
    for place, (pixels, label) in enumerate(zip(data["train_images"][:80], data["train_labels"][:80, 0], strict=True)):
        (tmp_path / f"{place}.png").write_bytes(encoded(pixels))
        rows.append((f"{place}.png", int(label)))
    pd.DataFrame(rows, columns=["file", "pneumonia"]).to_csv(tmp_path / "manifest.csv", index=False)
    image = {"kind": "image", "unit": "grey level", "height": 28, "width": 28, "minimum": 0, "maximum": 255}
    label = {"column": "pneumonia", "vocabulary": [0, 1], "positive": [1]}
    study = Study.of(
        small_study().contract() | {"cohort": {"columns": {"file": image}, "label": label}, "sites": ["north", "south"]}
    )
    home = site(tmp_path, entry(tmp_path), study)

    reply = read_update(
        Site(home).answer(write_task(study, 1, initial_weights(study))), size=parameter_spec(study).size
    )

    assert reply.weight == 80
    assert np.count_nonzero(reply.values) > 500


@pytest.mark.skipif(not DICOM.is_dir(), reason="no dicom/pydicom_test_files below FEDWARD_DATA or ../shared/data")
def test_real_dicom_files_become_one_cohort(tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    folder.mkdir()
    for name in ("CT_small.dcm", "J2K_pixelrep_mismatch.dcm"):
        shutil.copyfile(DICOM / name, folder / name)
    frame = pd.DataFrame({"file": ["CT_small.dcm", "J2K_pixelrep_mismatch.dcm"], "y": ["0", "1"]})
    frame.to_csv(folder / "manifest.csv", index=False)
    image = {"kind": "image", "unit": "HU", "height": 16, "width": 16, "minimum": -1000, "maximum": 1000,
             "outside": "clip", "resize": "stretch"}  # fmt: skip
    label = {"column": "y", "vocabulary": [0, 1], "positive": [1]}
    schema = small_study(cohort={"columns": {"file": image}, "label": label}).cohort
    found = entry(folder)
    ImageSource(found, tmp_path).seal()

    features = cohort(tmp_path, found, schema).patients(8).features

    assert features.shape == (2, 1, 256)
    assert (np.ptp(features, axis=2) > 0.2).all()


def test_no_name_of_a_dicom_header_is_in_anything_that_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    folder.mkdir()
    for place in range(3):
        (folder / f"{place}.dcm").write_bytes(dicom(np.full((8, 8), 10 * place, dtype=np.uint8)))
    (folder / "broken.dcm").write_bytes(dicom(np.zeros((8, 8), dtype=np.uint8), Rows=9))
    pd.DataFrame({"file": ["0.dcm", "1.dcm", "2.dcm"], "patient": list("abc"), "age": "30", "outcome": "no"}).to_csv(
        folder / "manifest.csv", index=False
    )
    home = site(tmp_path, entry(folder), STUDY)
    Site(home).answer(write_task(STUDY, 1, initial_weights(STUDY)))

    written = [path.read_bytes() for path in home.rglob("*") if path.is_file()]

    assert sum(CANARY.encode() in (folder / f"{place}.dcm").read_bytes() for place in range(3)) == 3
    assert not any(CANARY.encode() in content for content in written)
