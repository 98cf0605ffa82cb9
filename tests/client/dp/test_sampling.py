"""Patients are drawn by independent coins of the study's probability; a patient's records never leave their loss."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from fedward_client.cohorts import Patients
from fedward_client.dp.sampling import PatientSampler, Picture, pictures_of
from fedward_common.schema import CohortSchema
from fedward_common.tables import feature_names


def patients(count: int = 60, rows: int = 1, features: int = 2) -> Patients:
    """Every feature of a record is ten times the patient's number plus the record's."""
    values = 10.0 * np.arange(count)[:, None] + np.arange(rows)[None, :]
    block = np.repeat(values[:, :, None], features, axis=2).astype(np.float32)
    return Patients(block, values.astype(np.float32), np.ones((count, rows), dtype=np.float32))


def who(features: torch.Tensor) -> list[int]:
    return [int(value) // 10 for value in features[:, 0, 0]]


def test_patients_are_drawn_independently_with_the_study_s_probability() -> None:
    """Inclusion of each patient, size of the batches, and pairs: false alarms below 1e-6."""
    sampler, draws = PatientSampler(patients(), 0.3), np.zeros((2000, 60), dtype=bool)
    for row in draws:
        row[who(sampler.draw()[0])] = True
    half = stats.norm.ppf(1 - 1e-7 / 120)
    assert np.abs(draws.mean(axis=0) - 0.3).max() < half * math.sqrt(0.3 * 0.7 / 2000)
    assert draws.sum(axis=1).var() == pytest.approx(60 * 0.3 * 0.7, rel=5.5 * math.sqrt(2 / 2000))
    pairs = (draws[:, :-1] & draws[:, 1:]).mean(axis=0)
    assert np.abs(pairs - 0.09).max() < half * math.sqrt(0.09 * 0.91 / 2000)


def test_steps_are_independent_of_each_other() -> None:
    """Shuffling, which draws nobody again before all others, would make them so: false alarms below 1e-6."""
    sampler = PatientSampler(patients(), 0.5)
    drawn = [set(who(sampler.draw()[0])) for _ in range(2001)]
    again = np.array([len(a & b) / 60 for a, b in pairwise(drawn)])
    assert again.mean() == pytest.approx(0.25, abs=5.5 * math.sqrt(0.25 * 0.75 / (60 * 2000) * 3))


def test_batches_differ_though_all_seeds_are_the_same() -> None:
    found = []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002  (the attack: a seed that somebody sets)
        torch.manual_seed(1)
        found.append(who(PatientSampler(patients(), 0.5).draw()[0]))
    assert found[0] != found[1]


def test_a_rate_of_one_draws_everybody_and_a_tiny_one_nobody() -> None:
    assert who(PatientSampler(patients(), 1.0).draw()[0]) == list(range(60))
    features, labels, mask = PatientSampler(patients(rows=3), 1e-12).draw()
    assert (features.shape, labels.shape, mask.shape) == ((0, 3, 2), (0, 3), (0, 3))


def test_the_divisor_is_the_expected_number_and_not_the_drawn_one() -> None:
    sampler = PatientSampler(patients(50), 0.3)
    sampler.draw()
    assert sampler.expected == pytest.approx(15.0)


def test_records_are_drawn_anew_evenly_and_each_at_most_once() -> None:
    sampler, counts = PatientSampler(patients(1, rows=5), 1.0, records=2), np.zeros(5)
    for _ in range(3000):
        features, labels, mask = sampler.draw()
        places = features[0, :, 0].int().tolist()
        assert len(set(places)) == 2
        assert labels[0].int().tolist() == places
        assert mask.sum() == 2
        counts[places] += 1
    assert stats.chisquare(counts).pvalue > 1e-7


def test_padding_is_drawn_only_where_a_patient_has_no_more_records() -> None:
    cohort = patients(3, rows=4)
    cohort.mask[0, 1:] = 0
    cohort.mask[1, 3:] = 0
    sampler = PatientSampler(cohort, 1.0, records=2)
    for _ in range(200):
        _, labels, mask = sampler.draw()
        assert mask.sum(dim=1).tolist() == [1, 2, 2]
        assert int(labels[0][mask[0] == 1]) == 0


def test_more_records_than_there_are_take_all() -> None:
    features, _, _ = PatientSampler(patients(4, rows=3), 1.0, records=9).draw()
    assert features.shape == (4, 3, 2)


def test_a_batch_is_a_copy_and_the_cohort_stays_as_it_is() -> None:
    cohort = patients(4)
    features, _, _ = PatientSampler(cohort, 1.0).draw()
    features += 1
    assert cohort.features[0, 0, 0] == 0


# ------------------------------------------------------------------------------------------------------------- views
PICTURE = Picture(1, 8, 16, 3)


def pictured(count: int = 4) -> Patients:
    generator = np.random.Generator(np.random.PCG64(1))
    features = generator.random((count, 2, PICTURE.stop + 2), dtype=np.float32)
    return Patients(features, np.zeros((count, 2), np.float32), np.ones((count, 2), np.float32))


def image(features: torch.Tensor | np.ndarray) -> np.ndarray:
    flat = np.asarray(features)[PICTURE.start : PICTURE.stop]
    return flat.reshape(PICTURE.height, PICTURE.width, PICTURE.channels)


def shifted(source: np.ndarray, down: int, right: int) -> np.ndarray:
    rows = np.clip(np.arange(8) + down, 0, 7)
    columns = np.clip(np.arange(16) + right, 0, 15)
    return source[rows][:, columns]


def test_each_view_is_its_record_mirrored_or_not_and_shifted_and_nothing_else_changes() -> None:
    cohort = pictured()
    features, labels, mask = PatientSampler(cohort, 1.0, views=5, pictures=[PICTURE]).draw()
    assert features.shape[:2] == labels.shape == mask.shape == (4, 10)
    seen = set()
    for patient in range(4):
        for view in range(10):
            record, found = cohort.features[patient, view // 5], features[patient, view]
            assert found[0] == record[0]
            assert np.array_equal(found[PICTURE.stop :], record[PICTURE.stop :])
            matches = [
                (flip, down, right)
                for flip in (1, -1)
                for down in (-1, 0, 1)
                for right in (-2, -1, 0, 1, 2)
                if np.array_equal(image(found), shifted(image(record)[:, ::flip], down, right))
            ]
            assert len(matches) == 1
            seen.add(matches[0])
    assert len(seen) > 10


def test_pictures_are_found_among_the_other_columns() -> None:
    image_column = {"kind": "image", "unit": "grey", "height": 2, "width": 3, "minimum": 0, "maximum": 255}
    schema = CohortSchema.model_validate({
        "columns": {
            "age": {"kind": "numeric", "unit": "years", "minimum": 0, "maximum": 120, "missing": True, "impute": 50},
            "left": image_column,
            "sex": {"kind": "categorical", "categories": ["f", "m"]},
            "top": image_column | {"channels": 3},
        },
        "label": {"column": "y", "vocabulary": ["no", "yes"], "positive": ["yes"]},
    })  # fmt: skip
    names = feature_names(schema)
    found = pictures_of(schema)
    assert [(names[p.start], p.stop - p.start) for p in found] == [
        (next(n for n in names if n.startswith("left")), 6),
        (next(n for n in names if n.startswith("top")), 18),
    ]
