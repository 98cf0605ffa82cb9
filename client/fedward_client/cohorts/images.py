"""Rows of a manifest, one for each picture of a folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedward_client.cohorts.entries import ImagesEntry
from fedward_client.cohorts.seal import Differences, compare, hash_folder, read_seal, write_seal
from fedward_common.canonical import canonical_json
from fedward_common.errors import LocalDataError
from fedward_common.images import ImageFolder, image_facts, place_inside
from fedward_common.picture import BrokenImageError
from fedward_common.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ImageSource"]

_NOT_THERE: Final = "not there"


class ImageSource:
    """A `fedward_client.cohorts.encoded.Source` over a folder of pictures.

    A picture is used only as long as it is what was registered: its bytes are hashed as they are read, and one that
    is not as the seal says is broken, whatever it shows.

    Args:
        entry: which folder, manifest and seal.
        home: the site's folder.
    """

    def __init__(self, entry: ImagesEntry, home: Path) -> None:
        self._entry = entry
        self._folder = home / entry.images
        self._manifest = home / entry.manifest
        self._seal = home / entry.seal
        which = hashlib.sha256(canonical_json([str(self._folder), str(self._manifest)])).hexdigest()[:16]
        self._memory = home / "cache" / f"{which}.hashes.json"

    def digest(self) -> bytes:
        """Return a SHA-256 over the manifest and every picture in the folder; see `Source.digest`."""
        try:
            manifest = hashlib.sha256(self._manifest.read_bytes()).hexdigest()
        except OSError as error:
            msg = f"{self._manifest.name}, the manifest, cannot be read ({type(error).__name__})"
            raise LocalDataError(msg, remedy="check the path in site.yaml and the file's permissions") from None
        return hashlib.sha256(canonical_json([manifest, self._hashes()])).digest()

    def frame(self) -> pd.DataFrame:
        """Return the manifest; see `Source.frame`.

        Raises:
            LocalDataError: it cannot be read, or a column that names files is not there.
        """
        frame = read_table(self._manifest)
        missing = [name for name in self._entry.file_columns if name not in frame.columns]
        if missing:
            msg = f"{self._manifest.name}: there is no column {missing[0]!r} that names the files"
            raise LocalDataError(msg, remedy="name the column: fedward client cohort add … --file-columns NAME")
        return frame

    def images(self, columns: Collection[str]) -> ImageFolder | None:
        """See `Source.images`.

        Raises:
            LocalDataError: the register does not let one of `columns` name files, or there is no seal.
        """
        strange = sorted(set(columns) - set(self._entry.file_columns))
        if strange:
            msg = f"the study reads pictures from the column {strange[0]!r}, which is none of file_columns"
            raise LocalDataError(msg, remedy="name it in file_columns of the cohort in site.yaml, if it names files")
        return ImageFolder(self._folder, read_seal(self._seal))

    def content(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with each file's name replaced by the hash of the file; see `Source.content`."""
        hashes = read_seal(self._seal)

        def hashed(cell: object) -> str:
            try:
                return hashes.get(str(place_inside(str(cell).strip())), "")
            except BrokenImageError:
                return ""

        return frame.assign(**{name: frame[name].map(hashed) for name in self._entry.file_columns})

    def seal(self) -> int:
        """Keep the hashes of the pictures as they are now and return how many there are."""
        hashes = hash_folder(self._folder, without=self._manifest)
        write_seal(self._seal, hashes)
        return len(hashes)

    def differences(self) -> Differences:
        """Return how many pictures are not what they were when the folder was registered."""
        return compare(read_seal(self._seal), self._hashes())

    def survey(self) -> tuple[dict[str, int], dict[str, int], int]:
        """Return how many pictures of the manifest are of which kind, how many break which rule, and who is left out.

        Only headers are read. The last number is that of the pictures in the folder that the manifest does not name.
        """
        frame, kinds, broken, named = self.frame(), Counter[str](), Counter[str](), set()
        folder = ImageFolder(self._folder)
        for name in self._entry.file_columns:
            for cell in frame[name]:
                try:
                    named.add(str(place_inside(str(cell).strip())))
                    kinds[str(image_facts(folder.read(str(cell).strip())))] += 1
                except BrokenImageError as error:
                    broken[f"{name}: {error.rule}"] += 1
        return dict(kinds), dict(broken), len(self._hashes().keys() - named)

    def shared(self) -> int:
        """Return how many rows of the manifest show what an earlier row shows, all pictures of a row together."""
        shown = self.content(self.frame())[list(self._entry.file_columns)]
        return int(shown[(shown != "").all(axis=1)].duplicated().sum())

    def _hashes(self) -> dict[str, str]:
        return hash_folder(self._folder, without=self._manifest, memory=self._memory)
