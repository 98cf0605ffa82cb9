"""DICOM files become features as ImageColumn says, and of a header nothing is ever repeated."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from fedward_common.contract import validated
from fedward_common.dicom import dicom_facts, dicom_values, is_dicom
from fedward_common.images import image_facts, image_features
from fedward_common.picture import BrokenImageError
from fedward_common.schema import ImageColumn
from tests.pictures import CANARY, DICOM, dicom

STORED = (np.arange(12, dtype=np.int16) * 300 - 1000).reshape(3, 4)
needs_files = pytest.mark.skipif(
    not DICOM.is_dir(), reason="no dicom/pydicom_test_files below FEDWARD_DATA or ../shared/data"
)


def column(**changes: Any) -> ImageColumn:
    facts = {"unit": "HU", "height": 3, "width": 4, "minimum": -1024, "maximum": 3072}
    return validated(ImageColumn, facts | changes)


def values(content: bytes, unit: str = "HU") -> Any:
    return dicom_values(content, unit=unit)[:, :, 0]


def rule(content: bytes, unit: str = "grey level") -> str:
    with pytest.raises(BrokenImageError) as caught:
        dicom_values(content, unit=unit)
    assert CANARY not in caught.value.rule
    assert caught.value.__cause__ is None
    return caught.value.rule


def said(content: bytes) -> str:
    """Return the rule that a file breaks; empty when it is a picture."""
    try:
        features = image_features(content, column(resize="stretch", outside="clip"))
    except BrokenImageError as error:
        return error.rule
    return "" if features.shape == (12,) else "of another length"


def file(name: str) -> bytes:
    return (DICOM / name).read_bytes()


# --------------------------------------------------------------------------------------------------------------- values
def test_stored_values_are_rescaled() -> None:
    content = dicom(STORED, RescaleSlope="2", RescaleIntercept="-1024")

    np.testing.assert_array_equal(values(content), STORED.astype(float) * 2 - 1024)


def test_a_fractional_slope_is_kept() -> None:
    np.testing.assert_allclose(values(dicom(STORED, RescaleSlope="0.25")), STORED * 0.25, atol=1e-3)


def test_without_a_rescale_stored_values_are_the_values() -> None:
    content = dicom(STORED, RescaleSlope=None, RescaleIntercept=None, Modality="MR")

    np.testing.assert_array_equal(values(content, "signal"), STORED)


@pytest.mark.parametrize(
    ("pixels", "bits", "total"),
    [
        (np.array([[0, 10], [200, 255]], dtype=np.uint8), 8, 255),
        (np.array([[0, 10], [200, 4095]], dtype=np.uint16), 12, 4095),
        (np.array([[-128, 0], [5, 127]], dtype=np.int8), 8, -1),
    ],
    ids=["8 bits", "12 of 16 bits", "signed"],
)
def test_monochrome1_is_turned_over_within_what_its_bits_hold(pixels: Any, bits: int, total: int) -> None:
    """By the header alone: turned over by its own brightest pixel, a picture would depend on its content."""
    content = dicom(pixels, PhotometricInterpretation="MONOCHROME1", BitsStored=bits, HighBit=bits - 1)

    np.testing.assert_array_equal(values(content), total - pixels.astype(float))


def test_monochrome1_is_turned_over_before_it_is_rescaled() -> None:
    content = dicom(
        STORED.astype(np.uint16), PhotometricInterpretation="MONOCHROME1", RescaleSlope="0.5", RescaleIntercept="10"
    )

    np.testing.assert_allclose(values(content), (65535 - STORED.astype(np.uint16).astype(float)) * 0.5 + 10)


def test_colours_are_read() -> None:
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)

    np.testing.assert_array_equal(dicom_values(dicom(colour, Modality="US"), unit="grey level"), colour)


def test_features_are_scaled_by_the_declared_window() -> None:
    content = dicom(STORED, RescaleIntercept="-24")

    got = image_features(content, column(minimum=-100, maximum=300, outside="clip"))

    np.testing.assert_allclose(got, (((STORED - 24.0).clip(-100, 300) - 100) / 200).ravel(), atol=1e-6)


def test_facts_are_the_header_s_and_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", never)

    assert str(image_facts(dicom(STORED))) == "DICOM CT 3 x 4 grey"
    assert str(image_facts(dicom(np.zeros((2, 5, 3), dtype=np.uint8), Modality="US"))) == "DICOM US 2 x 5 colour"


# ----------------------------------------------------------------------------------------------------------------- unit
@pytest.mark.parametrize("tags", [{"Modality": "MR"}, {"Modality": None}, {"RescaleSlope": None}])
def test_hu_exists_in_computed_tomography_with_a_rescale_alone(tags: dict[str, Any]) -> None:
    assert "not in HU" in rule(dicom(STORED, **tags), "HU")
    assert dicom_values(dicom(STORED, **tags), unit="signal").shape == (3, 4, 1)


# ------------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": "2"}, "more than one frame"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "neither grey nor RGB"),
        ({"PhotometricInterpretation": CANARY}, "neither grey nor RGB"),
        ({"SamplesPerPixel": 4}, "neither grey nor RGB"),
        ({"Rows": 60000, "Columns": 60000}, "more than 67,108,864 pixels"),
        ({"Rows": 0}, "empty"),
        ({"Rows": None}, "without a picture"),
        ({"Rows": 400}, "damaged"),
        ({"BitsAllocated": 7}, "damaged"),
    ],
)
def test_headers_that_promise_no_single_picture_are_refused(tags: dict[str, Any], words: str) -> None:
    assert words in rule(dicom(STORED, **tags))


def test_a_lookup_table_of_values_is_refused() -> None:
    from pydicom.dataset import Dataset  # noqa: PLC0415  (one test needs it)
    from pydicom.sequence import Sequence  # noqa: PLC0415  (see above)

    table = Dataset()
    table.LUTDescriptor = [2, 0, 16]
    table.ModalityLUTType = CANARY
    table.LUTData = b"\0\0\1\0"

    assert "lookup table" in rule(dicom(STORED, ModalityLUTSequence=Sequence([table])))


def test_a_deflated_file_is_refused_before_anything_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of it may hold a gigabyte."""

    def never(*_: object, **__: object) -> None:
        pytest.fail("a deflated file was inflated")

    content = dicom(STORED, syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("pydicom.filereader.zlib.decompress", never)

    assert "in a transfer syntax that is not read here" in rule(content)


def test_a_file_that_does_not_say_how_it_is_written_is_refused() -> None:
    content = dicom(STORED)
    place = content.index(b"\x02\x00\x10\x00UI")

    assert "damaged" in rule(content[:place] + b"\x02\x00\x11" + content[place + 3 :])


@pytest.mark.parametrize("size", [0, 100, 132, 140, 200, 300, 400, -1, -5])
def test_a_cut_file_is_a_rule_and_no_crash(size: int) -> None:
    content = dicom(STORED)[:size]
    with pytest.raises(BrokenImageError) as caught:
        image_features(content, column())

    assert CANARY not in caught.value.rule


def test_every_bent_byte_is_a_picture_or_a_rule(capfd: pytest.CaptureFixture[str]) -> None:
    content = dicom(STORED)
    random = np.random.default_rng(7)
    for _ in range(400):
        bent = bytearray(content)
        for place in random.integers(128, len(content), 3):
            bent[place] = random.integers(256)
        assert said(bytes(bent)) == "" or CANARY not in said(bytes(bent))
    out, err = capfd.readouterr()
    assert out + err == ""


# ----------------------------------------------------------------------------------------------------- nothing is said
def test_no_log_and_no_warning_quotes_a_header(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The library warns of values that break the standard by showing them."""
    strange = dicom(STORED, SpecificCharacterSet="ISO_IR 100").replace(b"ISO_IR 100", b"Canary4711")
    contents = [dicom(STORED, Modality=CANARY), strange]
    with pytest.warns(UserWarning, match="4711"):
        str(pydicom.dcmread(io.BytesIO(strange)).PatientName)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for content in contents:
            assert "4711" not in said(content)

    out, err = capfd.readouterr()
    assert not caught
    assert out + err + caplog.text == ""


@pytest.mark.parametrize("modality", [CANARY, "", None, "Miller", "ct"])
def test_a_modality_that_is_none_is_not_repeated(modality: str | None) -> None:
    assert str(dicom_facts(dicom(STORED, Modality=modality))) == "DICOM of another kind 3 x 4 grey"


# ---------------------------------------------------------------------------------------------------------- real files
@needs_files
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("CT_small.dcm", "DICOM CT 128 x 128 grey"),
        ("MR_small.dcm", "DICOM MR 64 x 64 grey"),
        ("examples_rgb_color.dcm", "DICOM US 240 x 320 colour"),
        ("examples_overlay.dcm", "DICOM MR 300 x 484 grey"),
        ("JPEG2000.dcm", "DICOM NM 1024 x 256 grey"),
    ],
)
def test_real_files_are_read(name: str, facts: str) -> None:
    assert str(image_facts(file(name))) == facts


@needs_files
def test_a_real_ct_is_in_hounsfield_units() -> None:
    """Rescaled by -1024: air lies near -1000 HU, soft tissue near 0."""
    got = values(file("CT_small.dcm"))

    assert (got.min(), got.max()) == (128 - 1024, 2191 - 1024)


@needs_files
@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm"]
)
def test_one_picture_in_several_transfer_syntaxes_is_one_picture(name: str) -> None:
    np.testing.assert_array_equal(values(file(name), "signal"), values(file("MR_small.dcm"), "signal"))


@needs_files
@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_colours_of_several_encodings_are_red_green_and_blue(name: str) -> None:
    """The picture has bands of pure colours; those of eight bits of YCbCr are near them."""
    got = dicom_values(file(name), unit="grey level")

    for row, expected in ((5, [255, 0, 0]), (25, [0, 255, 0]), (45, [0, 0, 255])):
        assert np.abs(got[row, 50] - expected).max() <= 8


@needs_files
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image_dfl.dcm", "transfer syntax"),
        ("examples_palette.dcm", "neither grey nor RGB"),
        ("examples_ybr_color.dcm", "more than one frame"),
        ("rtplan.dcm", "without a picture"),
        ("reportsi.dcm", "without a picture"),
        ("MR_truncated.dcm", "damaged, or compressed"),
        ("JPEGLSNearLossless_16.dcm", "export it uncompressed"),
    ],
)
def test_real_files_that_cannot_be_used_are_refused_with_the_rule(name: str, words: str) -> None:
    assert words in rule(file(name))


@needs_files
def test_every_real_file_is_a_picture_or_a_rule_and_shows_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    """Eighty files of ten years of bug reports; none may stop a cohort otherwise than by a count."""
    kept: dict[str, int] = {}
    for path in sorted(DICOM.glob("*.dcm")):
        wide = column(height=8, width=8, unit="1", resize="stretch", outside="clip")
        content = path.read_bytes()
        try:
            fitting = wide.model_copy(update={"channels": image_facts(content).channels})
            assert np.abs(image_features(content, fitting)).max() <= 1
            rule_ = "picture"
        except BrokenImageError as error:
            rule_ = error.rule
        kept[rule_] = kept.get(rule_, 0) + 1

    assert kept["picture"] >= 35
    assert len(kept) <= 9
    out, err = capfd.readouterr()
    assert out + err == ""


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 128, b"\0" * 128 + b"DICO"])
def test_what_is_no_dicom_is_told_by_its_beginning(content: bytes) -> None:
    assert not is_dicom(content)


def test_helper_writes_what_a_reader_finds(tmp_path: Path) -> None:
    """The canary is there: a test that does not see it sees nothing."""
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom(STORED))

    assert path.read_bytes().count(CANARY.encode()) == 4
    assert is_dicom(path.read_bytes())
