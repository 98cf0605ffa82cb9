"""What lies in a site's folder: policy, membership, permissions, ledger, log, and the cohorts that it registers."""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from fedward_client.budget import Budget
from fedward_client.cohorts import CohortEntry, source_of
from fedward_client.config import load_site
from fedward_client.connection import load_connection, open_way
from fedward_client.doctor import rules
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Kept, Level
from fedward_client.review import review_all
from fedward_client.site import Site
from fedward_common.certificates import load_node_key
from fedward_common.errors import LocalDataError

__all__ = ["audit", "cohorts", "enrolment", "ledger", "permissions", "policy"]

_MOST_FILES: Final = 100_000
_SECRET_NAMES: Final = frozenset({"opt-out.txt"})
_PUBLIC: Final = frozenset({".pub", ".lock"})  # made to be given away, or empty
_SECRET_FOLDERS: Final = frozenset({"cache"})  # patients' rows, encoded
_RESTORE: Final = "stop the daemon and restore the file from a backup; fedward client audit verify says what it lacks"


def policy(place: Place) -> Iterator[Finding]:
    """Find whether ``site.yaml`` can be read and says something sensible."""
    config = load_site(place.home)
    what = f"{place.home / 'site.yaml'}: site {config.site}, {len(config.cohorts)} cohorts registered"
    yield Finding("policy", Level.PASS, what)
    if config.policy.require_signature and not config.policy.signers:
        remedy = "name who may sign under policy.signers, or set require_signature: false"
        yield Finding("policy", Level.WARN, "every study is refused: a signature is asked for, of nobody", remedy)
    if strangers := sorted(set(config.policy.cohort_studies) - set(config.cohorts)):
        what = f"policy.cohort_studies names cohorts that are not registered: {', '.join(strangers)}"
        yield Finding("policy", Level.WARN, what, "correct the names; fedward client cohort list shows them")


def enrolment(place: Place) -> Iterator[Finding]:
    """Find whether the site has what it needs to reach its coordinator: settings, CA, a node key of its own."""
    if not place.enrolled:
        remedy = "fedward client enroll INVITE, with the line that the centre sent"
        yield Finding("enrolment", Level.WARN, "not enrolled yet", remedy)
        return
    settings = load_connection(place.home)
    open_way(settings, place.environment)
    load_node_key(settings.node_key)
    yield Finding("enrolment", Level.PASS, f"enrolled at {settings.superlink}")


def permissions(place: Place) -> Iterator[Finding]:
    """Find who may read and change the site's files."""
    home = place.home
    if not os.access(home, os.R_OK | os.X_OK):
        what = f"{home} is not there, or not readable by {_name(os.geteuid())}"
        yield Finding(
            "files", Level.FAIL, what, "run this command as the daemon's account, or: fedward client init SITE"
        )
        return
    kept = [_kept(path, home) for path in _below(home)]
    found = [entry for entry in kept if entry is not None]
    names = {owner: _name(owner) for owner in {entry.owner for entry in found}}
    yield from rules.modes(found[0], found[1:], names)
    if len(kept) >= _MOST_FILES:
        what = f"more than {_MOST_FILES} files: the rest was not looked at"
        yield Finding(
            "files", Level.WARN, what, f"see what fills {home}; cache/ may be deleted while the daemon is down"
        )


def _below(home: Path) -> Iterator[Path]:
    yield home
    count = 1
    for folder, folders, names in os.walk(home, onerror=_raise):
        for name in sorted(folders + names):
            yield Path(folder, name)
            count += 1
            if count >= _MOST_FILES:
                return


def _raise(error: OSError) -> None:
    raise error


def _kept(path: Path, home: Path) -> Kept | None:
    """Return what counts of a file; None where a link only points elsewhere, or the file is gone by now."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return None
    inside = path.relative_to(home)
    secret = stat.S_ISREG(found.st_mode) and (
        ".key" in path.suffixes or path.name in _SECRET_NAMES or inside.parts[0] in _SECRET_FOLDERS
    )
    name = str(path if path == home else inside)
    public = path.suffix in _PUBLIC and not secret
    return Kept(name, stat.S_IMODE(found.st_mode), found.st_uid, secret=secret, public=public)


def _name(owner: int) -> str:
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)


def ledger(place: Place) -> Iterator[Finding]:
    """Find whether the ledger can be read and is whole."""
    path = place.home / "ledger.sqlite"
    if not path.exists():
        yield Finding("ledger", Level.PASS, "nothing was spent yet")
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as database:
            answers = [str(row[0]) for row in database.execute("PRAGMA integrity_check").fetchmany(3)]
    except sqlite3.Error as error:
        answers = [str(error)]
    if answers == ["ok"]:
        yield Finding("ledger", Level.PASS, f"{path.name} is whole")
    else:
        yield Finding("ledger", Level.FAIL, f"{path.name}: {'; '.join(answers)}", _RESTORE)


def audit(place: Place) -> Iterator[Finding]:
    """Find whether the log of decisions is whole, and is the one that the ledger was kept with."""
    budget = Budget(place.home)
    if not budget.audit.path.exists():
        yield Finding("audit", Level.PASS, "nothing was decided yet")
        return
    if not (place.home / "audit.key").exists():
        yield Finding("audit", Level.FAIL, "audit.key is missing: nobody can tell whether the log is whole", _RESTORE)
        return
    wrong = [f"entry {found.number}: {found.what}" if found.number else found.what for found in budget.audit.verify()]
    wrong = wrong or budget.doubts()
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        remedy = "keep a copy of the folder as evidence, then: fedward client audit verify"
        yield Finding("audit", Level.FAIL, wrong[0] + more, remedy)
    else:
        what = f"{budget.audit.head().number} entries, whole, signed and in step with the ledger"
        yield Finding("audit", Level.PASS, what)


def cohorts(place: Place) -> Iterator[Finding]:
    """Find whether each registered cohort opens, and is what the studies approved on it were approved for."""
    config = load_site(place.home)
    for name, entry in config.cohorts.items():
        yield _opened(place.home, name, entry)
    if not config.cohorts:
        yield Finding("cohorts", Level.WARN, "none is registered", "fedward client cohort add NAME FILE")
        return
    for reviewed in review_all(Site(place.home), place.now()):
        study, found = reviewed.proposal.study, reviewed.standing
        if found.state == "changed" and found.cohort:
            remedy = f"if that was meant: fedward client approve {study.digest[:12]} --cohort {found.cohort}"
            yield Finding("cohorts", Level.WARN, f"{study.name} is refused: {found.reason}", remedy)


def _opened(home: Path, name: str, entry: CohortEntry) -> Finding:
    try:
        source_of(entry, home).digest()
    except LocalDataError as error:
        return Finding("cohorts", Level.FAIL, f"{name}: {error.message}", error.remedy or "correct site.yaml")
    path = home / entry.place()
    if path.exists() and path.stat().st_mode & stat.S_IROTH and _reachable(path):
        what = f"{name} opens, and every account of this computer can read {path}"
        return Finding("cohorts", Level.WARN, what, f"chmod o-rwx {path}")
    return Finding("cohorts", Level.PASS, f"{name} opens")


def _reachable(path: Path) -> bool:
    """Return whether every folder above `path` lets everybody pass."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)
