"""PNG and JPEG files become features by the declared schema alone; what is wrong with one is a rule and no name."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedward_common.contract import validated
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.images import ImageFolder, image_facts, image_features, place_inside
from fedward_common.picture import BrokenImageError
from fedward_common.schema import CohortSchema, ImageColumn
from fedward_common.tables import encode, feature_count, feature_names
from tests.pictures import MEDMNIST, encoded

GREY = (np.arange(20, dtype=np.uint8) * 12).reshape(4, 5)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
NAME = "Miller_4711"


def column(**changes: Any) -> ImageColumn:
    facts = {"unit": "grey level", "height": 4, "width": 5, "minimum": 0, "maximum": 255}
    return validated(ImageColumn, facts | changes)


def rule(content: bytes, **changes: Any) -> str:
    with pytest.raises(BrokenImageError) as caught:
        image_features(content, column(**changes))
    assert caught.value.__cause__ is None
    return caught.value.rule


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_claims(height: int, width: int) -> bytes:
    """Return some hundred bytes whose header promises so many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# ------------------------------------------------------------------------------------------------------------- features
def test_pixels_are_scaled_by_the_declared_range_row_by_row() -> None:
    got = image_features(encoded(GREY), column())

    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (2 * GREY.reshape(-1).astype(float) - 255) / 255, atol=1e-6)


def test_colours_of_a_pixel_stand_beside_each_other() -> None:
    got = image_features(encoded(COLOUR), column(channels=3)).reshape(4, 5, 3)

    np.testing.assert_allclose(got, (2 * COLOUR.astype(float) - 255) / 255, atol=1e-6)


def test_names_follow_the_pixels() -> None:
    schema = validated(
        CohortSchema,
        {
            "columns": {
                "scan": column(height=2, width=2).model_dump(),
                "skin": column(height=1, width=2, channels=3).model_dump(),
                "age": {"kind": "numeric", "unit": "years", "minimum": 0, "maximum": 120},
            },
            "label": {"column": "y", "vocabulary": [0, 1], "positive": [1]},
        },
    )  # fmt: skip

    names = feature_names(schema)

    assert names == (
        "age", "scan[0,0]", "scan[0,1]", "scan[1,0]", "scan[1,1]",
        "skin[0,0,0]", "skin[0,0,1]", "skin[0,0,2]", "skin[0,1,0]", "skin[0,1,1]", "skin[0,1,2]",
    )  # fmt: skip
    assert len(set(names)) == len(names) == feature_count(schema)


def test_sixteen_bits_are_read_whole() -> None:
    deep = GREY.astype(np.uint16) * 257

    np.testing.assert_allclose(
        image_features(encoded(deep), column(maximum=65535)), image_features(encoded(GREY), column()), atol=1e-5
    )


def test_jpeg_is_read_as_near_as_its_loss_allows() -> None:
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    wide = column(height=32, width=32)

    got = image_features(encoded(smooth, "JPEG", quality=95), wide)

    assert np.abs(got - image_features(encoded(smooth), wide)).max() < 0.05


def test_a_picture_that_a_camera_took_lying_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    wide = np.zeros((16, 32), dtype=np.uint8)
    wide[:, :16] = 200
    content = encoded(wide, "JPEG", quality=95, exif=exif)

    got = image_features(content, column(height=32, width=16)).reshape(32, 16)

    assert (image_facts(content).height, image_facts(content).width) == (32, 16)
    assert (got[:14] > 0.4).all()
    assert (got[18:] < -0.8).all()


@pytest.mark.parametrize("minimum", [-1000.0, 0.0, 10.0])
@pytest.mark.parametrize("resize", ["stretch", "fit"])
@given(data=st.data())
def test_every_feature_lies_within_minus_one_and_one(minimum: float, resize: str, data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(1, 9)) for _ in range(2))
    cells = data.draw(st.lists(st.integers(0, 255), min_size=height * width, max_size=height * width))
    content = encoded(np.array(cells, dtype=np.uint8).reshape(height, width))

    got = image_features(content, column(minimum=minimum, maximum=200, outside="clip", resize=resize))

    assert got.shape == (20,)
    assert (np.abs(got) <= 1).all()


# ----------------------------------------------------------------------------------------------------------------- size
def test_another_size_is_refused_unless_the_study_says_how_to_fit_it() -> None:
    assert rule(encoded(GREY.T.copy())) == "not 4 x 5 pixels"


def test_stretch_takes_the_mean_of_what_a_new_pixel_covers() -> None:
    large = np.kron(GREY, np.array([[1, 3], [5, 7]], dtype=np.uint8))

    got = image_features(encoded(large), column(resize="stretch"))

    np.testing.assert_allclose((got * 255 + 255) / 2, large.reshape(4, 2, 5, 2).mean(axis=(1, 3)).ravel(), atol=1e-3)


def test_stretch_of_a_smaller_picture_repeats_its_pixels() -> None:
    small = np.array([[10, 250]], dtype=np.uint8)

    got = image_features(encoded(small), column(height=2, width=4, resize="stretch"))

    np.testing.assert_allclose((got * 255 + 255) / 2, [10, 10, 250, 250] * 2, atol=1e-3)


def test_fit_keeps_the_proportions_and_fills_with_the_minimum() -> None:
    wide = np.full((2, 8), 255, dtype=np.uint8)

    got = image_features(encoded(wide), column(height=4, width=4, resize="fit")).reshape(4, 4)

    assert got.tolist() == [[-1] * 4, [1] * 4, [-1] * 4, [-1] * 4]


def test_a_thin_picture_keeps_a_pixel() -> None:
    assert image_features(encoded(np.full((1, 500), 255, dtype=np.uint8)), column(resize="fit")).max() == 1


# ---------------------------------------------------------------------------------------------------------------- range
@pytest.mark.parametrize(
    ("changes", "words"), [({"minimum": 1}, "below 1 grey level"), ({"maximum": 227}, "above 227 grey level")]
)
def test_values_outside_the_range_are_refused(changes: dict[str, Any], words: str) -> None:
    assert rule(encoded(GREY), **changes) == words


def test_values_outside_the_range_become_its_ends_where_the_study_says_so() -> None:
    got = image_features(encoded(GREY), column(minimum=50, maximum=100, outside="clip"))

    np.testing.assert_allclose(got, (GREY.ravel().clip(50, 100) - 75.0) / 25, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "channels", "words"),
    [(COLOUR, 1, "in colour, the study reads grey ones"), (GREY, 3, "grey, the study reads")],
)
def test_other_channels_are_refused(pixels: Any, channels: int, words: str) -> None:
    assert words in rule(encoded(pixels), channels=channels)


# ----------------------------------------------------------------------------------------------------- strangers' bytes
@pytest.mark.parametrize(
    "image",
    [
        Image.new("P", (5, 4)),
        Image.new("RGBA", (5, 4)),
        Image.new("LA", (5, 4)),
        Image.new("1", (5, 4)),
        Image.new("CMYK", (5, 4)),
    ],
    ids=["palette", "transparent colour", "transparent grey", "one bit", "for print"],
)
def test_colours_with_no_one_meaning_are_refused(image: Image.Image) -> None:
    stream = io.BytesIO()
    image.save(stream, "JPEG" if image.mode == "CMYK" else "PNG")

    assert "neither grey of 8 or 16 bits nor RGB" in rule(stream.getvalue())


def test_moving_pictures_are_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])

    assert "more than one picture" in rule(stream.getvalue())


@pytest.mark.parametrize(("height", "width"), [(30_000, 30_000), (65_536, 1025), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a bomb was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    content = png_that_claims(height, width)
    assert len(content) < 400

    assert rule(content, resize="stretch") in {"empty, or more than 67,108,864 pixels", "damaged, or no picture"}


@pytest.mark.parametrize("size", [0, 7, 8, 20, 33, 45, -20])
def test_a_cut_file_is_a_rule_and_no_crash(size: int) -> None:
    assert rule(encoded(GREY)[:size]) in {"damaged, or no picture", "neither PNG nor JPEG nor DICOM"}


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_bent_byte_is_a_picture_or_a_rule(place: int, value: int) -> None:
    content = bytearray(encoded(GREY))
    content[place % len(content)] = value
    try:
        features = image_features(bytes(content), column(resize="stretch", outside="clip"))
    except BrokenImageError:
        return
    assert features.shape == (20,)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused_by_their_beginning(form: str) -> None:
    assert rule(encoded(GREY, form)) == "neither PNG nor JPEG nor DICOM"


def test_nothing_of_a_file_s_text_is_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(encoded(GREY))
    at = content.index(b"IDAT") - 4
    content[at:at] = chunk(b"tEXt", b"Patient\0" + NAME.encode()) + chunk(b"zTXt", NAME.encode())

    message = rule(bytes(content[:-20]))

    out, err = capfd.readouterr()
    assert NAME not in message + out + err


# ----------------------------------------------------------------------------------------------------------- the folder
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "pictures"
    (inside / "a" / "b").mkdir(parents=True)
    for place in ("one.png", "a/two.png", "a/b/three.png"):
        (inside / place).write_bytes(encoded(GREY))
    (tmp_path / "secret.png").write_bytes(encoded(GREY))
    return inside


def unread(folder: Path, name: str) -> str:
    with pytest.raises(BrokenImageError) as caught:
        ImageFolder(folder).read(name)
    assert NAME not in caught.value.rule
    return caught.value.rule


@pytest.mark.parametrize("name", ["one.png", "./one.png", "a/two.png", "a//two.png", "a/b/three.png"])
def test_files_below_the_folder_are_read(folder: Path, name: str) -> None:
    assert ImageFolder(folder).read(name) == encoded(GREY)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "a/..", "..", ".", "", "/etc/passwd", "//etc/passwd", "a\\two.png",
     "C:\\x.png", "one.png\0.png"],
)  # fmt: skip
def test_names_that_lead_out_are_refused(folder: Path, name: str) -> None:
    assert "not a place inside the folder" in unread(folder, name)


def test_absolute_path_of_a_file_that_is_inside_is_refused(folder: Path) -> None:
    assert "not a place inside the folder" in unread(folder, str(folder / "one.png"))


def test_links_are_refused_wherever_they_lead(folder: Path) -> None:
    (folder / "out.png").symlink_to("../secret.png")
    (folder / "in.png").symlink_to("one.png")
    (folder / "up").symlink_to("..")
    (folder / "down").symlink_to("a")

    for name in ("out.png", "in.png", "up/secret.png", "down/two.png"):
        assert "behind a link" in unread(folder, name)


def test_what_is_no_plain_file_is_refused_and_waited_for_by_nobody(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")

    assert "no plain file" in unread(folder, "pipe.png")
    assert "no plain file" in unread(folder, "a")
    assert "no plain file" in unread(folder, "one.png/two.png")


def test_missing_file_is_not_named(folder: Path) -> None:
    assert unread(folder, f"{NAME}.png") == "no such file in the folder"
    assert unread(folder, f"{NAME}/one.png") == "no such file in the folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_told_from_a_bad_one(folder: Path) -> None:
    """Somebody else once deleted good cases because of that error."""
    (folder / "one.png").chmod(0)

    assert "the file may be good" in unread(folder, "one.png")


def test_a_file_of_many_bytes_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "large.png").open("wb") as file:
        file.truncate((256 << 20) + 1)

    assert unread(folder, "large.png") == "larger than 256 MiB"


def test_a_sealed_folder_gives_what_was_sealed_and_nothing_else(folder: Path) -> None:
    seal = {"one.png": hashlib.sha256(encoded(GREY)).hexdigest(), "a/two.png": "0" * 64}
    sealed = ImageFolder(folder, seal)

    assert sealed.read("./one.png") == encoded(GREY)
    for name in ("a/two.png", "a/b/three.png"):
        with pytest.raises(BrokenImageError, match="not as it was when the folder was registered"):
            sealed.read(name)


@given(st.text(max_size=30))
def test_no_name_leads_out(name: str) -> None:
    try:
        place = place_inside(name)
    except BrokenImageError:
        return
    assert not place.is_absolute()
    assert ".." not in place.parts
    assert isinstance(place, PurePosixPath)


# ------------------------------------------------------------------------------------------------------------ the table
def table_schema(**changes: Any) -> CohortSchema:
    label = {"column": "y", "vocabulary": ["0", "1"], "positive": ["1"]}
    return validated(CohortSchema, {"columns": {"scan": column().model_dump()}, "label": label} | changes)


def test_a_table_of_pictures_becomes_a_matrix(folder: Path) -> None:
    (folder / "dark.png").write_bytes(encoded(GREY * 0))
    frame = pd.DataFrame({"scan": ["one.png", " dark.png "], "y": ["1", "0"]})

    rows = encode(frame, table_schema(), ImageFolder(folder))

    np.testing.assert_array_equal(rows.features[0], image_features(encoded(GREY), column()))
    assert (rows.features[1] == -1).all()
    assert rows.labels.tolist() == [1, 0]


def test_broken_pictures_are_counted_by_rule_beside_broken_cells(folder: Path) -> None:
    (folder / "small.png").write_bytes(encoded(GREY[:2]))
    (folder / "text.png").write_text(NAME, encoding="utf-8")
    names = ["one.png", "small.png", f"{NAME}.png", "../secret.png", "text.png", "", "small.png"]
    frame = pd.DataFrame({"scan": names, "y": ["1", "0", "0", "1", "0", "1", "7"]})

    with pytest.raises(SchemaMismatchError) as caught:
        encode(frame, table_schema(), ImageFolder(folder))

    assert caught.value.counts == {
        "scan: missing": 1,
        "y: not in the label's vocabulary": 1,
        "scan: not 4 x 5 pixels": 2,
        "scan: no such file in the folder": 1,
        "scan: not a place inside the folder: write it from the folder on, with / between its parts": 1,
        "scan: neither PNG nor JPEG nor DICOM": 1,
    }
    assert NAME not in caught.value.diagnostics()


def test_a_table_that_is_no_folder_of_pictures_is_refused() -> None:
    with pytest.raises(LocalDataError, match="holds pictures") as caught:
        encode(pd.DataFrame({"scan": ["one.png"], "y": ["1"]}), table_schema())

    assert "--images" in caught.value.remedy


def test_rows_without_a_picture_are_dropped_where_the_study_says_so(folder: Path) -> None:
    frame = pd.DataFrame({"scan": ["one.png", "NA", ""], "y": ["1", "0", "1"]})

    rows = encode(frame, table_schema(incomplete_rows="drop"), ImageFolder(folder))

    assert (len(rows.features), rows.dropped) == (1, 2)


def test_more_pixels_than_a_round_can_hold_are_refused_before_a_file_is_opened(folder: Path) -> None:
    large = column(height=256, width=256)

    with pytest.raises(LocalDataError, match="are too many"):
        ImageFolder(folder).pixels(["one.png"] * 8193, large)


@pytest.mark.skipif(not MEDMNIST.is_dir(), reason="no medmnist below FEDWARD_DATA or ../shared/data")
@pytest.mark.parametrize(("name", "channels"), [("breastmnist", 1), ("retinamnist", 3)])
def test_real_pictures_come_back_as_they_were_published(tmp_path: Path, name: str, channels: int) -> None:
    pixels = np.load(MEDMNIST / f"{name}.npz")["train_images"][:20]
    for place, picture in enumerate(pixels):
        (tmp_path / f"{place}.png").write_bytes(encoded(picture))

    got, broken = ImageFolder(tmp_path).pixels(
        [f"{n}.png" for n in range(20)], column(height=28, width=28, channels=channels)
    )

    assert not broken
    np.testing.assert_allclose((got.reshape(pixels.shape) * 255 + 255) / 2, pixels, atol=1e-3)
