"""What one child may use of the computer, as the child sets it on itself before it opens anything.

The wall time and the memory are watched from outside (`fedward_client.runner`); what is set here is what the kernel
holds without anybody looking.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedward_client.policy import Resources
from fedward_client.sandbox.linux import current_cpu

__all__ = ["GIB", "hold_to", "memory_of", "out_of_memory", "share_gpu"]

GIB: Final = 1 << 30
_KIB: Final = 1 << 10
_NICE: Final = 5
_FILES: Final = 1024
_OWN_MEMORY: Final = (b"RssAnon:", b"RssShmem:")


def memory_of(status: bytes) -> int:
    """Return the bytes of memory that a process holds for itself, from its ``/proc/PID/status``; 0 if none is said.

    What is mapped from files, such as libraries, does not count: the kernel takes it back when memory is short.
    """
    fields = (line.split() for line in status.splitlines() if line.startswith(_OWN_MEMORY))
    return sum(int(words[1]) * _KIB for words in fields)


def hold_to(resources: Resources) -> None:
    """Bound this process: cores, priority, address space, size of files, open files, no core dump, private files.

    A GPU's driver reserves address space without end, so with a part of a GPU only the memory that is in use is
    bounded, from outside.
    """
    os.umask(0o077)
    with suppress(OSError):
        os.nice(_NICE)
    _pin(resources.cpus)
    size = int(resources.memory_gib * GIB)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: size, resource.RLIMIT_NOFILE: _FILES}
    if not resources.gpu_memory_share:
        limits[resource.RLIMIT_DATA] = _reserved() + size
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (bound, bound))


def _pin(count: int) -> None:
    """Stay on `count` cores, from the one on that the kernel chose for this new process as the least busy."""
    cores = sorted(os.sched_getaffinity(0))
    if count < len(cores):
        start = cores.index(here) if (here := current_cpu()) in cores else 0
        os.sched_setaffinity(0, {cores[(start + step) % len(cores)] for step in range(count)})


def _reserved() -> int:
    """Return the bytes that this process has reserved for data by now, as RLIMIT_DATA counts them."""
    lines = Path("/proc/self/status").read_bytes().splitlines()
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith(b"VmData:")), 0)


def share_gpu(share: float) -> None:
    """Let torch take at most `share` of each GPU's memory; nothing where there is no GPU, or none is to be used."""
    if not share:
        return
    import torch  # noqa: PLC0415  (a child without a GPU may do without)

    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, device)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory could not be had: Python's, torch's, or a GPU's."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    torch = sys.modules.get("torch")
    gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return gpu or "can't allocate memory" in str(error)
