"""Pictures for tests: PNG and JPEG of arrays, DICOM files with a patient's name in every place that holds one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from sklearn.datasets import load_digits

from fedward_simulations.federation import data_folder

CANARY = "Canary^4711"
"""Stands wherever a DICOM header holds a text about the patient."""
MEDMNIST = data_folder() / "medmnist"
DICOM = data_folder() / "dicom" / "pydicom_test_files"

Pixels = npt.NDArray[Any]


def encoded(pixels: Pixels, form: str = "PNG", **options: Any) -> bytes:
    """Return an array, (height, width) or (height, width, 3), as a file of the format `form`."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def dicom(pixels: Pixels, *, syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """Return an array of whole numbers as an uncompressed DICOM file; CT with a rescale, changed by `tags`.

    A `syntax` that deflates, deflates.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.ndim == 3
    facts = {
        "PatientName": CANARY, "PatientID": CANARY, "StudyDescription": CANARY, "PatientComments": CANARY,
        "Modality": "CT", "Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize, "BitsStored": 8 * pixels.itemsize, "HighBit": 8 * pixels.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"), "RescaleSlope": "1", "RescaleIntercept": "0",
    }  # fmt: skip
    if colour:
        facts["PlanarConfiguration"] = 0
    stream = io.BytesIO()
    with disable_value_validation():  # tests write what no standard allows
        for name, value in {**facts, **tags}.items():
            if value is not None:
                setattr(dataset, name, value)
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def digits_folder(folder: Path, count: int = 60, *, start: int = 0, per_patient: int = 1) -> pd.DataFrame:
    """Write so many of scikit-learn's 8 x 8 digits as PNG below `folder` and return their manifest.

    Its columns: ``file``, ``patient``, ``age`` and ``outcome``, which says whether the digit is five or more.
    """
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place in range(start, start + count):
        name = f"part{place % 2}/digit{place:04d}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encoded((digits.images[place] * 15).astype(np.uint8)))
        high = "yes" if digits.target[place] >= 5 else "no"
        rows.append((name, f"p{place // per_patient:04d}", str(20 + place % 70), high))
    frame = pd.DataFrame(rows, columns=["file", "patient", "age", "outcome"])
    frame.to_csv(folder / "manifest.csv", index=False)
    return frame


def digits_contract() -> dict[str, Any]:
    """Return the cohort of a study that reads `digits_folder`."""
    return {
        "columns": {
            "file": {"kind": "image", "unit": "grey level", "height": 8, "width": 8, "minimum": 0, "maximum": 255},
            "age": {"kind": "numeric", "unit": "years", "minimum": 0, "maximum": 120},
        },
        "label": {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
        "patient": "patient",
    }
