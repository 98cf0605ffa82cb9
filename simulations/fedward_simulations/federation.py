"""Simulated hospitals: tables become one folder for each site, and a central hold-out that none of them trains on."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedward_client.cohorts import CohortEntry, ImagesEntry, ImageSource, TableEntry, open_cohort, source_of
from fedward_client.cohorts.identity import identities_of_content, identities_of_names
from fedward_client.config import SiteConfig, write_site
from fedward_client.policy import Policy
from fedward_client.site import approve
from fedward_common.contract import Contract, quantity
from fedward_common.errors import InstallationError, LocalDataError, SchemaMismatchError, SplitOverlapError, StudyError
from fedward_common.images import ImageFolder, place_inside
from fedward_common.picture import BrokenImageError
from fedward_common.schema import CohortSchema
from fedward_common.study import Study
from fedward_common.tables import Rows, complete_rows, encode, identifier_text, read_table
from fedward_server.evaluation import HoldOut

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Bundled", "Federation", "Source", "Tables", "assemble", "data_folder", "settle"]

COHORT = "cohort"


class Bundled(Contract):
    """A data set that an installed library ships, dealt out to hospitals of the named sizes."""

    kind: Literal["bundled"]
    dataset: Literal["breast_cancer"]
    hospitals: dict[str, float] = quantity("share of the rows, by hospital; they sum to 1", min_length=2)
    hold_out: float = quantity("share of the patients kept at the centre", default=0.2, gt=0, lt=1)


class Tables(Contract):
    """Tables of the user's: one for each site, or one with a column that names the site."""

    kind: Literal["tables"]
    folder: str = quantity("folder of the tables; `data:NAME` is below FEDWARD_DATA", default=".")
    tables: dict[str, str] = quantity(
        "file, by site; with `site_column` the one entry's name does not matter", min_length=1
    )
    names: tuple[str, ...] | None = quantity("columns of files without a header line", default=None)
    site_column: str | None = quantity("column that names the site of a row", default=None)
    hold_out: float = quantity("share of the patients kept at the centre", default=0.2, gt=0, lt=1)
    hold_out_table: str | None = quantity("a table of the centre's own; no site then gives any rows", default=None)
    split: Literal["patients", "flamby"] = quantity(
        "how the hold-out is drawn: patients, stratified by outcome; or FLamby's row split of 2022", default="patients"
    )


Source = Annotated[Bundled | Tables, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Federation:
    """The tables of a simulation, before a site has seen them.

    Attributes:
        tables: raw rows for training, by site.
        hold_out: central rows, encoded; None only if no valid row was left for it.
        rejected: sites whose table breaks the schema, with the counts of each rule; they keep all their rows and
            refuse for themselves.
        encoded: the same training rows as numbers, by site; none for a rejected one.
        pictures: the folder of the files that the rows name, where the schema has images.
    """

    tables: dict[str, pd.DataFrame]
    hold_out: HoldOut
    rejected: dict[str, SchemaMismatchError]
    encoded: dict[str, Rows] = field(default_factory=dict)
    pictures: Path | None = None


def data_folder() -> Path:
    """Return where data sets are: ``FEDWARD_DATA``, else ``../shared/data`` if there, else ``~/.fedward/data``."""
    if configured := os.environ.get("FEDWARD_DATA"):
        return Path(configured)
    beside = Path.cwd().parent / "shared" / "data"
    return beside if beside.is_dir() else Path.home() / ".fedward" / "data"


def assemble(source: Source, schema: CohortSchema, *, seed: int) -> Federation:
    """Return the simulated hospitals' tables and the central hold-out.

    Raises:
        LocalDataError: a table cannot be read, or no site has a valid row.
        SplitOverlapError: a patient of the central table is also at a site.
    """
    frames = _bundled(source, seed) if isinstance(source, Bundled) else _tables(source)
    pictures = _folder(source) if isinstance(source, Tables) and schema.images else None
    images = None if pictures is None else ImageFolder(pictures)
    own = isinstance(source, Tables) and source.hold_out_table
    train: dict[str, pd.DataFrame] = {}
    kept: dict[str, pd.DataFrame] = {}
    rejected: dict[str, SchemaMismatchError] = {}
    encoded: dict[str, Rows] = {}
    decided: dict[str, bool] = {}
    owed: dict[bool, float] = {}
    for index, (site, checked) in enumerate(sorted(_checked(frames, schema, images).items())):
        if isinstance(checked, SchemaMismatchError):
            train[site], rejected[site] = frames[site], checked
            continue
        usable, rows = checked
        held = np.zeros(len(usable), dtype=bool) if own else _held_out(source, rows, decided, owed, [seed, 2, index])
        train[site], kept[site] = usable.loc[~held], usable.loc[held]
        encoded[site] = _select(rows, np.nonzero(~held)[0])
    if isinstance(source, Tables) and source.hold_out_table:
        central = read_table(_folder(source) / source.hold_out_table, names=source.names)
        kept = {"central": complete_rows(central, schema)}
    if rejected and not kept:
        raise _all_rejected(rejected)
    hold_out = _hold_out(kept, schema, images)
    if own or schema.patient:
        _refuse_overlap(train, kept, schema, rejected)
    return Federation(train, hold_out, rejected, encoded, pictures)


def _checked(
    frames: Mapping[str, pd.DataFrame], schema: CohortSchema, images: ImageFolder | None
) -> dict[str, tuple[pd.DataFrame, Rows] | SchemaMismatchError]:
    """Return each site's usable rows, raw and encoded, or what they break.

    Rows that keep the schema are encoded in one go: with hundreds of small sites nearly all the time is overhead.
    """
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    found: dict[str, tuple[pd.DataFrame, Rows] | SchemaMismatchError] = {}
    usable: dict[str, pd.DataFrame] = {}
    for site, frame in frames.items():
        try:
            usable[site] = complete_rows(frame, schema)
        except SchemaMismatchError as error:
            found[site] = error
    try:
        whole = encode(pd.concat(usable.values(), ignore_index=True), schema, images) if usable else None
    except SchemaMismatchError:
        whole = None
    start = 0
    for site, frame in usable.items():
        try:
            chosen = np.arange(start, start + len(frame))
            rows = encode(frame, schema, images) if whole is None else _select(whole, chosen)
        except SchemaMismatchError as error:
            found[site] = error
        else:
            found[site] = (frame, rows)
        start += len(frame)
    return found


def _select(rows: Rows, chosen: npt.NDArray[np.int64]) -> Rows:
    """Return some of the rows as `encode` would give them alone."""
    codes, patients = np.unique(rows.patients[chosen], return_inverse=True)
    names = rows.identifiers
    return Rows(
        features=rows.features[chosen],
        labels=rows.labels[chosen],
        patients=patients.astype(np.int64).reshape(-1),
        identifiers=None if names is None else tuple(names[code] for code in codes),
        dropped=0,
    )


def settle(federation: Federation, study: Study, policy: Policy, root: Path) -> dict[str, Path]:
    """Make one home for each site below `root`, with its table, its policy and its approval of `study`.

    Returns the homes, by site. They hold patients' rows: `root` is the caller's to remove.
    """
    homes: dict[str, Path] = {}
    who = _identities(federation)
    for site, frame in federation.tables.items():
        home = root / site
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        frame.to_csv(home / f"{COHORT}.csv", index=False)
        entry = _register(home, frame, study.cohort, federation.pictures)
        write_site(home, SiteConfig(site=site, policy=policy, cohorts={COHORT: entry}))
        approve(home, study, COHORT)
        if site in federation.encoded:  # as a hospital's staff does on registration: checked once, then read back
            names = who[site] if site in who else identities_of_content(source_of(entry, home).content(frame))
            open_cohort(entry, study.cohort, home).keep(federation.encoded[site], names)
        homes[site] = home
    return homes


def _register(home: Path, frame: pd.DataFrame, schema: CohortSchema, pictures: Path | None) -> CohortEntry:
    """Return the register's entry of a site's table, with the pictures that it names in a folder of the site's own."""
    if pictures is None:
        return TableEntry(table=f"{COHORT}.csv")
    entry = ImagesEntry(
        images="images", manifest=f"{COHORT}.csv", file_columns=tuple(schema.images), seal="seals/cohort.json"
    )
    (home / entry.images).mkdir()
    for cell in {str(cell).strip() for name in schema.images for cell in frame[name]}:
        try:
            place = place_inside(cell)
        except BrokenImageError:  # the site refuses its table for itself
            continue
        copy = home / entry.images / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (pictures / place).is_file():
            shutil.copyfile(pictures / place, copy)
    ImageSource(entry, home).seal()
    return entry


def _identities(federation: Federation) -> dict[str, npt.NDArray[np.uint8]]:
    """Return who the encoded patients are, by site; rows without an identifier in one go, as in `_checked`.

    Where rows without an identifier name pictures, who they are is in the files, and nothing is returned.
    """
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    rows = federation.encoded
    named = {site: identities_of_names(r.identifiers) for site, r in rows.items() if r.identifiers is not None}
    unnamed = [site for site in rows if site not in named]
    if unnamed and federation.pictures is None:
        whole = identities_of_content(pd.concat([federation.tables[site] for site in unnamed], ignore_index=True))
        edges = np.cumsum([len(federation.tables[site]) for site in unnamed])[:-1]
        named |= dict(zip(unnamed, np.split(whole, edges), strict=True))
    return named


def _folder(source: Tables) -> Path:
    if source.folder.startswith("data:"):
        folder = data_folder() / source.folder.removeprefix("data:")
        if not folder.is_dir():
            name = folder.name
            msg = f"the data set {name} is not at {folder}"
            raise LocalDataError(
                msg, remedy=f"fedward data get {name}, or point FEDWARD_DATA to a folder that has {name}/"
            )
        return folder
    return Path(source.folder)


def _tables(source: Tables) -> dict[str, pd.DataFrame]:
    folder = _folder(source)
    frames = {site: read_table(folder / file, names=source.names) for site, file in source.tables.items()}
    if source.site_column is None:
        return frames
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    whole = pd.concat(frames.values(), ignore_index=True)
    if source.site_column not in whole.columns:
        msg = f"site_column {source.site_column!r} is no column of the table"
        raise StudyError(msg)
    groups = whole.groupby(source.site_column, sort=True, dropna=True)
    sites: dict[str, pd.DataFrame] = {}
    for value, group in groups:
        name = _site_name(value)
        if name in sites:
            msg = f"site_column {source.site_column!r}: two of its values give the site name {name!r}"
            raise StudyError(msg, remedy="write the sites' names in letters, digits, _, . and -")
        sites[name] = group.reset_index(drop=True)
    return sites


def _site_name(value: object) -> str:
    text = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in str(value))
    return text if text[:1].isalnum() else f"site{text}"


def _bundled(source: Bundled, seed: int) -> dict[str, pd.DataFrame]:
    """Return scikit-learn's Wisconsin table, read without importing scikit-learn, dealt to the hospitals."""
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        msg = "scikit-learn is not installed; it ships the breast_cancer table"
        raise InstallationError(msg, remedy="pip install 'fedward[simulation]'")
    path = Path(spec.origin).parent / "datasets" / "data" / f"{source.dataset}.csv"
    frame = pd.read_csv(path, skiprows=1, header=None, dtype=str, names=[*WISCONSIN, "diagnosis"])
    frame["diagnosis"] = frame["diagnosis"].map({"0": "malignant", "1": "benign"})
    if abs(sum(source.hospitals.values()) - 1) > 1e-6:  # noqa: PLR2004  (rounding of decimal shares)
        msg = f"cohort.source.hospitals sum to {sum(source.hospitals.values()):g}, not to 1"
        raise StudyError(msg)
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(frame))
    edges = np.rint(np.cumsum([0.0, *source.hospitals.values()]) * len(frame)).astype(int)
    return {
        site: frame.iloc[order[start:end]].reset_index(drop=True)
        for site, start, end in zip(source.hospitals, edges, edges[1:], strict=False)
    }


def _held_out(
    source: Source, rows: Rows, decided: dict[str, bool], owed: dict[bool, float], seed: list[int]
) -> npt.NDArray[np.bool_]:
    """Return which rows go to the centre, whole patients only.

    `decided` keeps one decision for all sites. `owed` carries what rounding took from a site that owes less than one
    patient, by outcome, to the next such site: of hundreds of sites with one death each, every fifth gives it.
    """
    if isinstance(source, Tables) and source.split == "flamby":
        return _flamby_split(rows.labels)
    generator = np.random.Generator(np.random.PCG64(seed))
    outcome = np.zeros(rows.patient_count, dtype=bool)
    np.logical_or.at(outcome, rows.patients, rows.labels == 1)
    held = np.zeros(rows.patient_count, dtype=bool)
    for value in (False, True):
        members = np.nonzero(outcome == value)[0]
        due = len(members) * source.hold_out
        if due < 1:
            due += owed.get(value, 0.0)
            owed[value] = due - round(due)
        count = round(due)
        held[generator.permutation(members)[:count]] = True
    for code, identifier in enumerate(rows.identifiers or ()):
        held[code] = decided.setdefault(identifier, bool(held[code]))
    return held[rows.patients]


def _flamby_split(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return FLamby's test rows of one centre (owkin/FLamby, Fed-Heart-Disease: 34 %, seed 43); of one row none."""
    if len(labels) <= 1:
        return np.zeros(len(labels), dtype=bool)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  (one study needs it)

    counts = np.bincount(labels, minlength=2)
    stratify = labels if (counts > 2).all() else None  # noqa: PLR2004  (FLamby's rule)
    _, test = train_test_split(
        np.arange(len(labels)), test_size=1 - 0.66, train_size=0.66, random_state=43, shuffle=True, stratify=stratify
    )
    held = np.zeros(len(labels), dtype=bool)
    held[test] = True
    return held


def _all_rejected(rejected: Mapping[str, SchemaMismatchError]) -> SchemaMismatchError:
    listing = "; ".join(f"{site}: {error.message}" for site, error in list(rejected.items())[:8])
    msg = f"every hospital's table breaks the schema ({listing})"
    return SchemaMismatchError(
        msg, counts=next(iter(rejected.values())).counts, remedy=next(iter(rejected.values())).remedy
    )


def _hold_out(kept: Mapping[str, pd.DataFrame], schema: CohortSchema, images: ImageFolder | None) -> HoldOut:
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    usable = {site: frame for site, frame in kept.items() if len(frame)}
    if not usable:
        msg = "no row is left for the central hold-out"
        raise LocalDataError(msg, remedy="give more valid rows, or a larger cohort.source.hold_out")
    centres = np.concatenate([np.full(len(frame), code) for code, frame in enumerate(usable.values())])
    rows = encode(pd.concat(usable.values(), ignore_index=True), schema, images)
    return HoldOut(rows, centres.astype(np.int64), tuple(usable))


def _refuse_overlap(
    train: Mapping[str, pd.DataFrame],
    kept: Mapping[str, pd.DataFrame],
    schema: CohortSchema,
    rejected: Mapping[str, object],
) -> None:
    """Refuse a patient on both sides; without identifiers whole rows are compared, however they are written."""
    columns = [schema.patient] if schema.patient else [*schema.columns, schema.label.column]
    written: Callable[[object], str] = identifier_text if schema.patient else _as_number

    def keys(frame: pd.DataFrame) -> set[tuple[str, ...]]:
        rows = frame[columns].itertuples(index=False, name=None)
        return {tuple(written(cell) for cell in row) for row in rows}

    central = set().union(*(keys(frame) for frame in kept.values()))
    shared = {site: len(keys(frame) & central) for site, frame in train.items() if site not in rejected}
    found = {site: number for site, number in shared.items() if number}
    if found:
        listing = ", ".join(f"{site}: {number}" for site, number in found.items())
        msg = f"patients of the central hold-out are also at a site ({listing})"
        raise SplitOverlapError(msg, remedy="take these patients out of one side")


def _as_number(cell: object) -> str:
    """Return a cell such that ``45``, ``45.0`` and `` 45`` are one value."""
    text = str(cell).strip()
    try:
        return repr(float(text))
    except ValueError:
        return text


_MEASUREMENTS = (
    "radius", "texture", "perimeter", "area", "smoothness",
    "compactness", "concavity", "concave points", "symmetry", "fractal dimension",
)  # fmt: skip
WISCONSIN = (
    *(f"mean {name}" for name in _MEASUREMENTS),
    *(f"{name} error" for name in _MEASUREMENTS),
    *(f"worst {name}" for name in _MEASUREMENTS),
)
"""Column names of the Wisconsin table, as scikit-learn gives them."""
