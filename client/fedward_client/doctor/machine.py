"""This computer: room on the disk, memory, shared memory, installed software, and whether a step can be trained."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from fedward_client.config import load_site
from fedward_client.doctor import rules
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level
from fedward_client.probe import training_problem
from fedward_client.runner import Runner, TaskLimits
from fedward_common import __version__
from fedward_common.errors import FedwardError, InstallationError
from fedward_common.flower_adapter import check_flower_version

__all__ = ["disk", "gpu", "memory", "shm", "software", "training"]

_KIB: Final = 1024
_STEP_S: Final = 50.0
_REINSTALL: Final = f"install the release anew: pip install 'fedward[client]=={__version__}' -c constraints.txt"


def disk(place: Place) -> Iterator[Finding]:
    """Find how much room the site's folder has."""
    found = place.statvfs(place.home)
    files = found.f_favail if found.f_files else -1
    yield rules.free_space(str(place.home), found.f_bavail * found.f_frsize, files)


def memory(place: Place) -> Iterator[Finding]:
    """Find how much memory a task could have: what the computer has left, and what this process may still take."""
    lines = (place.proc / "meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:"))
    yield rules.free_memory(min([available, *_within_limits(place)]))


def _within_limits(place: Place) -> Iterator[int]:
    """Yield what each control group of this process has left (Linux, "Control Group v2", memory.max), if limited."""
    try:
        lines = (place.proc / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for folder in [place.cgroup / group, *(place.cgroup / parent for parent in Path(group).parents)]:
        try:
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            used = (folder / "memory.current").read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdigit() and used.isdigit():
            yield max(0, int(limit) - int(used))


def shm(place: Place) -> Iterator[Finding]:
    """Find how large the shared memory is."""
    try:
        found = place.statvfs(place.shm)
    except OSError as error:
        remedy = "mount -t tmpfs tmpfs /dev/shm"
        yield Finding("shm", Level.FAIL, f"{place.shm} cannot be used ({type(error).__name__})", remedy)
        return
    yield rules.shared_memory(found.f_blocks * found.f_frsize)


def software(_: Place) -> Iterator[Finding]:
    """Find whether what is installed belongs together."""
    try:
        flower = check_flower_version()
        torch = metadata.version("torch")
    except (InstallationError, metadata.PackageNotFoundError) as error:
        yield Finding("software", Level.FAIL, str(error), _REINSTALL)
        return
    python = platform.python_version()
    yield Finding("software", Level.PASS, f"Fedward {__version__}, flwr {flower}, torch {torch}, Python {python}")


def training(place: Place) -> Iterator[Finding]:
    """Find whether a step can be trained, in a child forked and confined as the daemon's are, and what confines it."""
    runner = Runner(place.worker, TaskLimits(wall_s=_STEP_S), preload=place.preload)
    try:
        runner.start()
        problem, sandbox = training_problem(runner), runner.sandbox
    finally:
        runner.close()
    if not sandbox.by_kernel:
        remedy = "a kernel with Landlock and seccomp (Linux 5.13 or newer), or a container that does not forbid them"
        yield Finding("sandbox", Level.WARN, sandbox.describe(), remedy)
    else:
        yield Finding("sandbox", Level.PASS, sandbox.describe())
    if problem:
        remedy = "its log line on standard error says where; memory and disk above may be the cause"
        yield Finding("training", Level.FAIL, f"a training step does not work: {problem}", remedy)
    else:
        yield Finding("training", Level.PASS, "a private training step works, in a child of its own")


def gpu(place: Place) -> Iterator[Finding]:
    """Find whether a GPU, if there is one, trains a step; in a process of its own, which a driver may take down."""
    devices = sorted(path.name for path in place.dev.glob("nvidia[0-9]*")) + [
        name for name in ("kfd", "dxg") if (place.dev / name).exists()
    ]
    if not devices:
        yield Finding("gpu", Level.PASS, "none here; training runs on the processor")
        return
    command = [place.python, "-m", "fedward_client.doctor.gpu_step"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_STEP_S, check=True)
        names = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        names, problem = [], f"a step on it ends with {_ending(error)}"
    else:
        problem = "" if names else "torch cannot use it"
    if names:
        yield Finding("gpu", Level.PASS, f"a step works on {', '.join(names)}")
        return
    level = Level.FAIL if _wants_gpu(place) else Level.WARN
    remedy = "nvidia-smi: is the driver loaded? In a container: --gpus all; torch must be a CUDA build"
    yield Finding("gpu", level, f"{', '.join(devices)}: {problem}", remedy)


def _ending(error: Exception) -> str:
    return f"exit code {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else type(error).__name__


def _wants_gpu(place: Place) -> bool:
    """Return whether the policy gives tasks a part of the GPU; a policy that cannot be read is another check's."""
    try:
        return load_site(place.home).policy.resources.gpu_memory_share > 0
    except FedwardError:
        return False
