"""Pictures in DICOM files. Of a header only what the pixels need is read, and nothing of it is ever repeated."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.picture import BrokenImageError, ImageFacts, require_bounds

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["dicom_facts", "dicom_values", "is_dicom"]

_PREAMBLE: Final = 128
_HEADER: Final = (
    "Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope",
    "ModalityLUTSequence",
)  # fmt: skip
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable",
                  "ExtendedOffsetTableLengths")  # fmt: skip
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_SYNTAXES: Final = frozenset(
    f"1.2.840.10008.1.2{rest}"
    for rest in ("", ".1", ".2", ".5", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91")
)
"""Uncompressed, RLE, JPEG, JPEG-LS and JPEG 2000 (DICOM PS3.5, chapter 10). Not deflated: its size is not known."""
_MODALITIES: Final = frozenset(
    {"AR", "BMD", "CR", "CT", "DG", "DX", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG", "MR", "NM", "OCT", "OP", "OPT",
     "OT", "PT", "PX", "RF", "RG", "RTDOSE", "RTIMAGE", "SC", "SEG", "SM", "TG", "US", "XA", "XC"}
)  # fmt: skip
"""Kinds of picture that a message may name (DICOM PS3.3, C.7.3.1.1.1); any other text of that element stays unsaid."""
_META: Final = 2
_TRANSFER_SYNTAX: Final = 0x00020010


def is_dicom(content: bytes) -> bool:
    """Return whether the bytes are a DICOM file (PS3.10, section 7.1)."""
    return content[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


def dicom_facts(content: bytes) -> ImageFacts:
    """Return what the header states; nothing is decoded.

    Raises:
        BrokenImageError: it holds no single grey or colour picture, or one that is too large.
    """
    with _judged(content, _HEADER) as header:
        modality = str(header.get("Modality", ""))
        known = modality if modality in _MODALITIES else "of another kind"
        return ImageFacts(f"DICOM {known}", int(header.Rows), int(header.Columns), int(header.SamplesPerPixel))


def dicom_values(content: bytes, *, unit: str) -> npt.NDArray[np.float32]:
    """Return the picture, float32, shape (height, width, channels), as `fedward_common.schema.ImageColumn` defines it.

    Args:
        content: the file.
        unit: what the study wants a pixel's value in; ``HU`` exists in computed tomography alone.

    Raises:
        BrokenImageError: it holds no single grey or colour picture, one that is too large, in another unit, or
            compressed in a way that no installed decoder reads.
    """
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415  (studies without pictures do without)

    with _judged(content, (*_HEADER, *_PIXELS)) as dataset:
        _require_unit(dataset, unit)
        values = pixel_array(dataset).astype(np.float64)
        values = values.reshape(int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            values = _ends(dataset) - values
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        scaled: npt.NDArray[np.float32] = (values * slope + intercept).astype(np.float32)
        return scaled


def _ends(dataset: Dataset) -> int:
    """Return the sum of the least and the greatest value that the stored bits can hold."""
    return -1 if int(dataset.PixelRepresentation) else (1 << int(dataset.BitsStored)) - 1


@contextmanager
def _judged(content: bytes, tags: tuple[str, ...]) -> Iterator[Dataset]:
    """Yield these elements of a file whose header was judged; whatever goes wrong until the end is one error."""
    import pydicom  # noqa: PLC0415  (studies without pictures do without)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of and logs may quote a header: a name in unknown letters
            logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # here: the library's import sets it anew
            _require_syntax(content)
            read: Any = pydicom.dcmread
            _judge(read(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(_HEADER)))
            yield read(io.BytesIO(content), stop_before_pixels=tags is _HEADER, specific_tags=list(tags))
    except BrokenImageError:
        raise
    except Exception:  # noqa: BLE001  (a decoder of strangers' bytes may raise anything, and quote them)
        rule = "damaged, or compressed as no installed decoder reads: export it uncompressed"
        raise BrokenImageError(rule) from None


def _require_syntax(content: bytes) -> None:
    """Return if the file's transfer syntax is one of those that are read; looks at the file's own header only."""
    from pydicom.filereader import read_dataset  # noqa: PLC0415  (studies without pictures do without)

    stream = io.BytesIO(content)
    stream.seek(_PREAMBLE + 4)
    meta = read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != _META
    )
    if str(meta[_TRANSFER_SYNTAX].value) not in _SYNTAXES:
        rule = "in a transfer syntax that is not read here: export it uncompressed (Explicit VR Little Endian)"
        raise BrokenImageError(rule)


def _judge(header: Dataset) -> None:
    if "Rows" not in header or "Columns" not in header:
        rule = "a DICOM file without a picture"
        raise BrokenImageError(rule)
    require_bounds(int(header.Rows), int(header.Columns))
    if int(header.get("NumberOfFrames") or 1) != 1:
        rule = "more than one frame: export each as a file"
        raise BrokenImageError(rule)
    wanted = {1: _GREY, 3: _COLOUR}.get(int(header.SamplesPerPixel), frozenset())
    if header.PhotometricInterpretation not in wanted:
        rule = "neither grey nor RGB: export it without a palette"
        raise BrokenImageError(rule)
    if "ModalityLUTSequence" in header:
        rule = "its values go through a lookup table (Modality LUT): export it with RescaleSlope and RescaleIntercept"
        raise BrokenImageError(rule)


def _require_unit(header: Dataset, unit: str) -> None:
    if unit == "HU" and (header.get("Modality") != "CT" or "RescaleSlope" not in header):
        rule = "not in HU: no computed tomography, or without RescaleSlope"
        raise BrokenImageError(rule)
