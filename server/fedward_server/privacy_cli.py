"""``fedward privacy plan``: what a budget means for each hospital, before anybody trains."""

from __future__ import annotations

import json as json_
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedward_common.errors import StudyError
from fedward_common.study import DpSgd, Study

if TYPE_CHECKING:
    from rich.console import Console

    from fedward_server.privacy_curve import Curve, Measured
    from fedward_server.privacy_plan import Plan, Question

__all__ = ["plan"]

plan = typer.Typer(add_completion=False)

_DEFAULTS: Final = {"epsilon": 8.0, "delta": 1e-5, "rounds": 30, "steps": 1, "rate": 1.0, "clip": 1.0}
_SHOWN: Final = 40
_SAME_SIZE: Final = 0.1


@plan.command()
def plan_command(  # noqa: PLR0917  (each is an option of the command line)
    site: Annotated[list[str] | None, typer.Option(help="NAME=PATIENTS, once for each hospital")] = None,
    study: Annotated[Path | None, typer.Option(help="A study file; what is not given here is taken from it")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Budget of the whole study at each hospital [8]")] = None,
    delta: Annotated[float | None, typer.Option(help="Probability that it does not hold [1e-5]")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds [30]")] = None,
    steps: Annotated[int | None, typer.Option(help="Noised steps of a hospital in a round [1]")] = None,
    rate: Annotated[float | None, typer.Option(help="Probability with which a step draws a patient [1]")] = None,
    clip: Annotated[float | None, typer.Option(help="L2 bound on a patient's gradient [1]")] = None,
    parameters: Annotated[int | None, typer.Option(help="Parameters of the model; needed without --study")] = None,
    most: Annotated[float, typer.Option(help="Noise, in clipping bounds, above which a model is out of reach")] = 1.0,
    curve: Annotated[Path | None, typer.Option(help="Folder with simulated runs of the study at several ε")] = None,
    metric: Annotated[str, typer.Option(help="Metric of result.json that the curve shows")] = "auroc",
    *,
    check: Annotated[bool, typer.Option("--check", help="Also ask the other accountants (seconds)")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else")] = False,
) -> None:
    """Show noise, patients per step and expected accuracy of a budget for each hospital and the federation."""
    from rich.console import Console  # noqa: PLC0415  (commands load what they use)

    from fedward_common.study_file import read_study_file  # noqa: PLC0415  (see above)
    from fedward_server.privacy_curve import read_curve  # noqa: PLC0415  (see above)
    from fedward_server.privacy_plan import planned  # noqa: PLC0415  (see above)

    given = {"epsilon": epsilon, "delta": delta, "rounds": rounds, "steps": steps, "rate": rate, "clip": clip}
    given |= {"parameters": parameters}
    contract = read_study_file(study).study if study else None
    if curve is not None and contract is None:
        msg = "--curve needs --study: a curve belongs to one study"
        raise StudyError(msg, remedy="fedward study compose writes the study's file")
    measured = read_curve(curve, contract, metric) if curve and contract else None
    asked = _question({key: value for key, value in given.items() if value is not None}, site or [], contract, measured)
    found = planned(replace(asked, most=most), _usable(measured, given, asked.patients))
    crossed = _crossed(found) if check else None
    if json:
        typer.echo(
            json_.dumps(_plain({"plan": asdict(found), "curve": measured and asdict(measured)} | (crossed or {})))
        )
    else:
        _show(found, contract, measured, Console())
        for line in _check_lines(crossed):
            typer.echo(line)


def _usable(curve: Curve | None, given: Mapping[str, Any], patients: Mapping[str, int]) -> Curve | None:
    """Return the curve unless what is planned is not what was measured.

    ε may be another; any other number that was given, or a hospital a tenth larger or smaller, makes it another study.
    """
    changed = any(value is not None for key, value in given.items() if key != "epsilon")
    if curve is None or changed:
        return None
    far = any(abs(patients.get(name, 0) - number) > _SAME_SIZE * number for name, number in curve.patients.items())
    return None if far else curve


def _patients(sites: list[str], curve: Curve | None, study: Study | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in sites:
        name, _, number = text.rpartition("=")
        if not name or not number.isascii() or not number.isdigit() or name in found:
            msg = f"--site {text}: not NAME=PATIENTS, or named twice"
            raise StudyError(msg, remedy="for example --site north=400 --site south=200")
        found[name] = int(number)
    if not found and curve is not None:
        found = dict(curve.patients)
    missing = sorted(set(study.sites) ^ set(found)) if study else []
    if not found or missing:
        msg = f"no number of patients, or no such hospital: {', '.join(missing)}" if missing else "no hospital is named"
        raise StudyError(msg, remedy="--site NAME=PATIENTS for each hospital (of the study, where there is one)")
    return found


def _question(given: dict[str, Any], sites: list[str], study: Study | None, curve: Curve | None) -> Question:
    from fedward_server.privacy_plan import Question  # noqa: PLC0415  (commands load what they use)

    values: dict[str, Any] = dict(_DEFAULTS) if study is None else _of_study(study)
    if given.keys() & {"epsilon", "delta", "rounds", "steps", "rate"}:
        values.pop("sigma", None)  # noise belongs to the budget for which it was calibrated
    values |= given
    missing = sorted({*_DEFAULTS, "parameters"} - values.keys())
    if missing:
        msg = f"not known: {', '.join(missing)}"
        raise StudyError(msg, remedy=" ".join(f"--{name}" for name in missing))
    return Question(patients=_patients(sites, curve, study), **values)


def _of_study(study: Study) -> dict[str, Any]:
    from fedward_common.models import parameter_spec  # noqa: PLC0415  (commands load what they use)

    values: dict[str, Any] = {
        "rounds": study.training.rounds,
        "steps": study.training.local_steps,
        "rate": study.training.sampling_rate,
        "parameters": parameter_spec(study).size,
        "weighting": study.aggregation.weighting,
    }
    if isinstance(study.privacy, DpSgd):
        values |= {"epsilon": study.privacy.epsilon, "delta": study.privacy.delta, "clip": study.privacy.clip_norm}
        values["sigma"] = study.privacy.noise_multiplier
    return values


def _crossed(found: Plan) -> dict[str, Any]:
    from fedward_common.privacy import Spend  # noqa: PLC0415  (commands load what they use)
    from fedward_common.privacy_check import cross_check  # noqa: PLC0415  (see above)

    asked = found.question
    crossed = cross_check([Spend(found.sigma, asked.rate, asked.total_steps)], asked.delta)
    return {"check": asdict(crossed) | {"agrees": crossed.agrees}}


def _check_lines(crossed: dict[str, Any] | None) -> list[str]:
    if crossed is None:
        return []
    names = {"pld": "ours", "google": "dp-accounting", "prv": "Opacus PRV", "rdp": "Rényi bound"}
    check = crossed["check"]
    told = [
        f"{name} {check[key]:.3f}" if check[key] is not None else f"{name}: {check['absent'].get(key, 'none')}"
        for key, name in names.items()
    ]
    return [f"ε by four accountants: {', '.join(told)}; {'they agree' if check['agrees'] else 'THEY DISAGREE'}"]


def _plain(value: Any) -> Any:
    """Return JSON values: numbers that are not finite are null, keys are text."""
    if isinstance(value, dict):
        return {f"{key:g}" if isinstance(key, float) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(measured: Measured | None) -> str:
    if measured is None:
        return "–"
    between = f" (between ε {measured.between[0]:g} and {measured.between[1]:g})" if measured.between else ""
    return f"{measured.mean:.3f} ± {measured.spread:.3f}, {measured.runs} runs{between}"


def _show(found: Plan, study: Study | None, curve: Curve | None, console: Console) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  (commands load what they use)
    from rich.table import Table  # noqa: PLC0415  (see above)

    asked = found.question
    console.print(
        f"ε {asked.epsilon:g} at δ {asked.delta:g} over {asked.total_steps} steps at rate {asked.rate:g}:"
        f" noise multiplier {found.sigma:g}, spends ε {found.spent:.4g}; {asked.parameters} parameters",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("hospital", "patients", "a step draws", "noise/C", "length/C", "same noise alone", box=SIMPLE_HEAD)
    for name, one in list(found.sites.items())[:_SHOWN]:
        alone = "no ε" if math.isinf(one.alone_epsilon) else f"ε {one.alone_epsilon:.3g}"
        row = (f"{one.per_step:.4g}", f"{one.noise.coordinate:.3g}", f"{one.noise.length:.3g}", alone)
        table.add_row(name, str(one.patients), *row)
    whole = sum(asked.patients.values())
    federation = (f"{found.federation.coordinate:.3g}", f"{found.federation.length:.3g}", "")
    table.add_row("federation", str(whole), f"{asked.rate * whole:.4g}", *federation)
    console.print(table)
    options = Table(
        "ε", "σ", "noise/C", "length/C", curve.metric if curve else "measured", "not alone", box=SIMPLE_HEAD
    )
    for option in found.options:
        noise = (f"{option.noise.coordinate:.3g}", f"{option.noise.length:.3g}")
        measured = _number(option.expected)
        options.add_row(f"{option.epsilon:g}", f"{option.sigma:g}", *noise, measured, str(option.out_of_reach))
    console.print(options)
    for sentence in found.sentences:
        console.print(sentence, highlight=False, soft_wrap=True)
    for line in _about_curve(found, study, curve):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _about_curve(found: Plan, study: Study | None, curve: Curve | None) -> list[str]:
    if found.expected is not None and curve is not None:
        without = f"; without privacy {_number(curve.without)}" if curve.without else ""
        return [f"{curve.metric} expected at ε {found.question.epsilon:g}: {_number(found.expected)}{without}"]
    name = study.name if study else "NAME"
    why = "no curve" if curve is None else f"the curve is of another study, or has no ε {found.question.epsilon:g}"
    return [
        f"{why}; this makes one:",
        "  for e in 1 2 4 8; do for s in 1 2 3; do",
        f"    fedward simulate study={name} privacy.epsilon=$e seed=$s --out runs; done; done",
        "  fedward privacy plan --study study.json --curve runs",
    ]
