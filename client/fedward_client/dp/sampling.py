"""Who takes part in a step, and with which records: drawn from the operating system's entropy, by patient.

Poisson sampling: each patient by a coin of their own, so that a batch's size is random too. The accounting holds for
this and for nothing else: shuffled batches of one size leak up to ten times what they would be charged (Annamalai et
al., NDSS 2026). Records and views of a drawn patient are averaged into one loss before the clip, so they cost nothing
more (user-level sampling, Charles et al., SaTML 2025).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.cohorts import Patients
from fedward_common.schema import CohortSchema, ImageColumn
from fedward_common.tables import feature_widths

__all__ = ["PatientSampler", "Picture", "pictures_of"]

_SHIFT = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture's pixels stand among a record's features, and its shape."""

    start: int
    height: int
    width: int
    channels: int

    @property
    def stop(self) -> int:
        """The first feature behind it."""
        return self.start + self.height * self.width * self.channels


def pictures_of(schema: CohortSchema) -> list[Picture]:
    """Return the pictures of an encoded record, in the order of the schema's columns."""
    found, start = [], 0
    for name, width in feature_widths(schema):
        column = schema.columns[name]
        if isinstance(column, ImageColumn):
            found.append(Picture(start, column.height, column.width, column.channels))
        start += width
    return found


class PatientSampler:
    """Draws batches of patients; every draw is independent of every other, of any seed and of any restart.

    Args:
        patients: the cohort.
        rate: probability with which a step draws a patient, in (0, 1].
        records: most records of a patient in a step; None: all.
        views: random views of each record, at least 1; 1 leaves records as they are.
        pictures: what a view changes.
    """

    def __init__(
        self,
        patients: Patients,
        rate: float,
        *,
        records: int | None = None,
        views: int = 1,
        pictures: Sequence[Picture] = (),
    ) -> None:
        self._tensors = [torch.from_numpy(a) for a in (patients.features, patients.labels, patients.mask)]
        self._rate, self._records, self._views, self._pictures = rate, records, views, pictures
        self._random = np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little")))
        self.expected = rate * len(patients)
        """Mean number of patients of a step: what a sum is divided by, since the number that was drawn is private."""

    def draw(self) -> tuple[torch.Tensor, ...]:
        """Return features, labels and mask of the patients of one step; of none with the probability that this has.

        Shapes (patients, records, features), (patients, records) and (patients, records).
        """
        drawn = torch.from_numpy(self._random.random(len(self._tensors[0])) < self._rate)
        features, labels, mask = (tensor[drawn] for tensor in self._tensors)
        if self._records is not None and self._records < mask.shape[1]:
            rows = torch.from_numpy(self._some_records(mask.numpy(), self._records))
            features = torch.take_along_dim(features, rows[:, :, None], dim=1)
            labels, mask = labels.gather(1, rows), mask.gather(1, rows)
        if self._views > 1:
            features, labels, mask = (t.repeat_interleave(self._views, dim=1) for t in (features, labels, mask))
            for picture in self._pictures:
                self._change(features, picture)
        return features, labels, mask

    def _some_records(self, mask: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.int64]:
        """Return which `most` places of each patient are taken, records before padding, shape (patients, `most`)."""
        keys = self._random.random(mask.shape) + (mask == 0)
        return np.argpartition(keys, most - 1, axis=1)[:, :most].astype(np.int64)

    def _change(self, features: torch.Tensor, picture: Picture) -> None:
        """Mirror each view of a picture with probability one half and shift it by up to an eighth, in place."""
        patients, views, _ = features.shape
        shape = (patients * views, picture.height, picture.width, picture.channels)
        images = features[:, :, picture.start : picture.stop].reshape(shape).numpy()
        mirrored = self._random.random(len(images)) < 0.5  # noqa: PLR2004  (a fair coin)
        images[mirrored] = images[mirrored, :, ::-1]
        rows, columns = (self._places(len(images), size) for size in (picture.height, picture.width))
        moved = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
        features[:, :, picture.start : picture.stop] = torch.from_numpy(moved).reshape(patients, views, -1)

    def _places(self, count: int, size: int) -> npt.NDArray[np.int64]:
        """Return for each of `count` views which line each line shows; behind an edge, the edge's own."""
        shift = self._random.integers(-(size // _SHIFT), size // _SHIFT, size=(count, 1), endpoint=True)
        places: npt.NDArray[np.int64] = np.clip(np.arange(size)[None, :] + shift, 0, size - 1)
        return places
