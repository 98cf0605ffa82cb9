"""Every planted defect of differential privacy turns the suite red; the sources as they are leave it green."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import Mutant, judge, plant, try_mutant, try_original
from tests.privacy_mutants import MUTANTS


@pytest.mark.mutants
def test_the_tests_that_find_mutants_pass_on_the_original() -> None:
    verdict = try_original(MUTANTS)
    assert not verdict.killed, verdict.output


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_mutant_is_killed(mutant: Mutant) -> None:
    verdict = try_mutant(mutant)
    assert verdict.killed, f"{mutant.name} survived {', '.join(mutant.killers)}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted_and_is_valid_python(mutant: Mutant, tmp_path: Path) -> None:
    plant(tmp_path, mutant)
    changed = tmp_path / Path(mutant.file).relative_to(Path(mutant.file).parts[0])
    compile(changed.read_text(encoding="utf-8"), mutant.file, "exec")


def test_names_of_mutants_are_told_apart() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_text_that_is_not_there_once_plants_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(tmp_path / "none", Mutant("none", "client/fedward_client/dp/sums.py", "no such text", "", ()))
    with pytest.raises(ValueError, match=r"occurs \d+ times"):
        plant(tmp_path / "many", Mutant("many", "client/fedward_client/dp/sums.py", "torch", "", ()))


def test_a_copy_that_cannot_be_imported_is_no_kill(tmp_path: Path) -> None:
    plant(tmp_path, None)
    (tmp_path / "fedward_client" / "__init__.py").write_text("broken(")
    with pytest.raises(RuntimeError, match="pytest ended with"):
        judge("broken", tmp_path, ["tests/client/dp/test_sampling.py"])


def test_tests_of_a_mutant_do_not_run_on_the_checkout(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="was not imported from"):
        judge("elsewhere", tmp_path, ["tests/client/dp/test_sampling.py"])
