"""What a cohort table must look like: declared by the study, checked at every site, never learned from rows.

Scaling uses the declared ranges, imputation the declared constants; both are public, so neither costs privacy.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedward_common.contract import Contract, quantity

__all__ = ["CategoricalColumn", "CohortSchema", "Column", "ImageColumn", "Label", "NumericColumn"]

_MOST_PIXELS = 65_536

_LARGEST = 1e15
"""Numbers of a schema stay exact in a float64, and their differences finite."""


def _cell(value: object) -> object:
    if isinstance(value, bool):
        msg = "true and false are no cells of a table; YAML reads yes and no as these: write 'yes' in quotes"
        raise ValueError(msg)  # noqa: TRY004  (pydantic reports ValueError only)
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        msg = f"numbers end at {_LARGEST:g}"
        raise ValueError(msg)
    return value


Scalar = Annotated[str | int | float, BeforeValidator(_cell)]


class NumericColumn(Contract):
    """A measured quantity. Scaled to [-1, 1] by ``(2x - minimum - maximum) / (maximum - minimum)``."""

    kind: Literal["numeric"] = "numeric"
    unit: str = quantity("unit of measurement, for example mmHg; 1 for a pure number", min_length=1, max_length=40)
    minimum: float = quantity(
        "smallest value that is possible, in `unit`; a smaller one breaks the schema", ge=-_LARGEST, le=_LARGEST
    )
    maximum: float = quantity("largest value that is possible, in `unit`", ge=-_LARGEST, le=_LARGEST)
    integer: bool = quantity("whole numbers only", default=False)
    missing: bool = quantity("may be missing: adds a 0/1 feature that says so", default=False)
    missing_marks: tuple[Scalar, ...] = quantity(
        "values of this column that mean missing, besides the schema's", default=()
    )
    impute: float | None = quantity(
        "the value used where it is missing, in `unit`; needed when `missing`", default=None
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum >= self.maximum:
            msg = f"minimum {self.minimum} {self.unit} must be below maximum {self.maximum} {self.unit}"
            raise ValueError(msg)
        if self.missing and self.impute is None:
            msg = "a column that may be missing declares its `impute` constant"
            raise ValueError(msg)
        if self.impute is not None and not self.minimum <= self.impute <= self.maximum:
            msg = f"impute {self.impute} {self.unit} lies outside the declared range"
            raise ValueError(msg)
        return self


class CategoricalColumn(Contract):
    """One of a list. Two categories give one 0/1 feature (the second is 1), more give one each.

    With `group` there is one 0/1 feature only: whether the value is in the group. With `other` the list is open:
    each category has a feature of its own, and all of them are 0 for a value that is not listed.
    """

    kind: Literal["categorical"] = "categorical"
    categories: tuple[Scalar, ...] = quantity("all values that are possible", min_length=2, max_length=1000)
    group: tuple[Scalar, ...] | None = quantity("categories told apart from all others", default=None, min_length=1)
    other: bool = quantity("values that are not listed may occur: all features are 0 for them", default=False)
    missing: bool = quantity("may be missing: all its features are 0 and one more says so", default=False)
    missing_marks: tuple[Scalar, ...] = quantity(
        "values of this column that mean missing, besides the schema's", default=()
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if min(len(set(self.categories)), len(set(map(str, self.categories)))) != len(self.categories):
            msg = "categories are listed twice"
            raise ValueError(msg)
        if self.group is not None and not set(map(str, self.group)) < set(map(str, self.categories)):
            msg = "group names some of the categories, not all and no other"
            raise ValueError(msg)
        return self

    @property
    def indicators(self) -> tuple[tuple[Scalar, ...], ...]:
        """The values for which each of the column's 0/1 features is 1, in order."""
        if self.group is not None:
            return (self.group,)
        one_says_all = len(self.categories) == 2 and not self.other  # noqa: PLR2004  (the two of a closed list)
        shown = self.categories[1:] if one_says_all else self.categories
        return tuple((value,) for value in shown)


class ImageColumn(Contract):
    """A picture: the cell names a PNG, JPEG or DICOM file in the cohort's folder. Each pixel is one feature.

    Pixels are read row by row, the channels of one beside each other, and scaled to [-1, 1] by the declared range as
    a number's is. A DICOM file gives its stored values times RescaleSlope plus RescaleIntercept (DICOM PS3.3,
    C.11.1), MONOCHROME1 turned over within the range that its stored bits can hold.
    """

    kind: Literal["image"] = "image"
    unit: str = quantity("unit of a pixel's value: grey level, HU for CT, …", min_length=1, max_length=40)
    height: int = quantity("rows of pixels", "pixels", ge=1, le=1024)
    width: int = quantity("columns of pixels", "pixels", ge=1, le=1024)
    channels: Literal[1, 3] = quantity("values of a pixel: 1, grey; 3, red, green and blue", default=1)
    minimum: float = quantity("value that becomes -1, in `unit`", ge=-_LARGEST, le=_LARGEST)
    maximum: float = quantity("value that becomes 1, in `unit`", ge=-_LARGEST, le=_LARGEST)
    outside: Literal["reject", "clip"] = quantity(
        "values outside the range: reject, they break the schema; clip, they become the nearest that is in it, as a "
        "window of CT does",
        default="reject",
    )
    resize: Literal["no", "stretch", "fit"] = quantity(
        "pictures of another size: no, they break the schema; stretch, made to fit; fit, made to fit with their "
        "proportions kept, in the middle, the rest filled with `minimum`. Each new pixel is the mean of the area it "
        "covers; where it covers less than one, that one's value",
        default="no",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum >= self.maximum:
            msg = f"minimum {self.minimum} {self.unit} must be below maximum {self.maximum} {self.unit}"
            raise ValueError(msg)
        return self

    @property
    def size(self) -> int:
        """Number of features."""
        return self.height * self.width * self.channels


Column = Annotated[NumericColumn | CategoricalColumn | ImageColumn, Field(discriminator="kind")]


class Label(Contract):
    """The outcome: `positive` values are class 1, the rest of `vocabulary` class 0."""

    column: str = quantity("name of the outcome's column", min_length=1)
    vocabulary: tuple[Scalar, ...] = quantity(
        "all values that are possible; another one breaks the schema", min_length=2
    )
    positive: tuple[Scalar, ...] = quantity("the values that count as the outcome", min_length=1)

    @model_validator(mode="after")
    def _subset(self) -> Self:
        unknown = [value for value in self.positive if str(value) not in map(str, self.vocabulary)]
        if unknown:
            msg = f"positive values {unknown} are not in the vocabulary"
            raise ValueError(msg)
        if len(set(map(str, self.positive))) == len(set(map(str, self.vocabulary))):
            msg = "every value is positive: nothing to tell apart"
            raise ValueError(msg)
        return self


class CohortSchema(Contract):
    """The table that a study reads at a site."""

    description: str = quantity("one sentence for the hospital's staff", default="", max_length=500)
    columns: dict[Annotated[str, Field(min_length=1, max_length=200)], Column] = quantity(
        "the features, by column name", min_length=1
    )
    label: Label
    patient: str | None = quantity("column that identifies the patient; null: each row is one patient", default=None)
    max_rows_per_patient: int = quantity("rows of one patient used at a time", "rows", default=8, ge=1, le=1024)
    missing_marks: tuple[Scalar, ...] = quantity("values that mean missing in every column", default=("", "NA", "?"))
    incomplete_rows: Literal["reject", "drop", "drop_unlabelled"] = quantity(
        "drop: a row with one of the schema's missing marks is left out; reject: it is kept where the column may be "
        "missing, and else counts as broken; drop_unlabelled: a row without a label is left out, any other is as "
        "under reject",
        default="reject",
    )

    @field_validator("columns")
    @classmethod
    def _in_one_order(cls, columns: dict[str, Column]) -> dict[str, Column]:
        """Sort by name: canonical JSON sorts its keys, and the order of the features must survive it."""
        return dict(sorted(columns.items()))

    @model_validator(mode="after")
    def _roles(self) -> Self:
        if self.label.column in self.columns:
            msg = f"the label {self.label.column!r} is also listed as a feature"
            raise ValueError(msg)
        if self.patient is not None and self.patient in self.columns:
            msg = f"the patient identifier {self.patient!r} is also listed as a feature"
            raise ValueError(msg)
        pixels = sum(column.size for column in self.images.values())
        if pixels > _MOST_PIXELS:
            msg = f"the images have {pixels} pixel values together, at most {_MOST_PIXELS} are possible"
            raise ValueError(msg)
        return self

    @property
    def images(self) -> dict[str, ImageColumn]:
        """The columns that are pictures, by name."""
        return {name: column for name, column in self.columns.items() if isinstance(column, ImageColumn)}
