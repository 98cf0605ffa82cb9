"""What a site's register says of a data set: where it is, and what only the hospital knows of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Tag, model_validator

from fedward_client.cohorts.statement import dialect_of, refuse_secrets, require_select
from fedward_common.contract import Contract, quantity
from fedward_common.errors import LocalDataError

__all__ = ["CohortEntry", "ImagesEntry", "SqlEntry", "TableEntry"]


class _Entry(Contract):
    """What every kind of data set may say of itself."""

    patient_column: str | None = quantity(
        "column that identifies the patient, where a study names none or another one", default=None, min_length=1
    )
    opt_outs_at_source: bool = quantity(
        "the data leave out by themselves who opted out; needed where no column identifies the patient", default=False
    )

    def facts(self) -> list[Any]:
        """Return what of this entry, besides the data, decides what is trained on: part of the fingerprint."""
        return [self.patient_column] if self.patient_column else []


class TableEntry(_Entry):
    """A CSV, TSV or Parquet file."""

    kind: Literal["table"] = "table"
    table: str = quantity("path of a CSV or Parquet file; relative to the site's home, or absolute", min_length=1)
    names: tuple[str, ...] | None = quantity("columns of a file without a header line", default=None)

    def facts(self) -> list[Any]:
        """See `_Entry.facts`."""
        return [list(self.names or ()), *super().facts()]

    def place(self) -> str:
        """Return where the data are, for a list of cohorts."""
        return self.table


class SqlEntry(_Entry):
    """The rows of one SELECT in a database of the hospital's: PostgreSQL, or an SQLite file."""

    kind: Literal["sql"] = "sql"
    sql: str = quantity("one SELECT statement, or WITH … SELECT", min_length=1, max_length=100_000)
    database: str = quantity(
        "SQLAlchemy URL without a password: postgresql://user@host/name, sqlite:///path/of/file.db", min_length=1
    )
    password_file: str | None = quantity(
        "file with the password on its first line, mode 0600; relative to the site's home, or absolute", default=None
    )
    password_variable: str | None = quantity("environment variable with the password", default=None)
    max_rows: int = quantity("more rows than this are refused", "rows", default=1_000_000, ge=1, le=100_000_000)

    @model_validator(mode="after")
    def _only_reads(self) -> Self:
        if self.password_file and self.password_variable:
            msg = "name password_file or password_variable, not both"
            raise ValueError(msg)
        try:
            refuse_secrets(self.database)
            require_select(self.sql, dialect_of(self.database))
        except LocalDataError as error:
            msg = f"{error.message}; {error.remedy}"
            raise ValueError(msg) from None
        return self

    def place(self) -> str:
        """Return where the data are, for a list of cohorts."""
        return self.database


class ImagesEntry(_Entry):
    """A folder of PNG, JPEG or DICOM files, and a table with a row for each picture: its file, patient and label.

    `seal` holds the SHA-256 of each file as it was when somebody registered the folder.
    """

    kind: Literal["images"] = "images"
    images: str = quantity("the folder; relative to the site's home, or absolute", min_length=1)
    manifest: str = quantity("CSV or Parquet file with a row for each picture", min_length=1)
    file_columns: tuple[str, ...] = quantity(
        "columns of the manifest that name files, from the folder on", default=("file",), min_length=1
    )
    seal: str = quantity("file with the SHA-256 of each picture; written by cohort add and cohort seal", min_length=1)

    def facts(self) -> list[Any]:
        """See `_Entry.facts`."""
        return [list(self.file_columns), *super().facts()]

    def place(self) -> str:
        """Return where the data are, for a list of cohorts."""
        return self.images


def _kind(value: Any) -> str:
    """Return which kind of data set is meant: what it says, else what its keys say."""
    if not isinstance(value, dict):
        return str(getattr(value, "kind", "table"))
    guess = next((kind for kind in ("sql", "images") if kind in value), "table")
    return str(value.get("kind", guess))


CohortEntry = Annotated[
    Annotated[TableEntry, Tag("table")] | Annotated[SqlEntry, Tag("sql")] | Annotated[ImagesEntry, Tag("images")],
    Discriminator(_kind),
]
"""What the register may hold under a cohort's name."""
