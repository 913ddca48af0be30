"""What the machine is and how to make the most of it."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""names of mallopt's parameters in glibc's malloc.h"""


def default_device() -> torch.device:
    """The GPU when there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def kind_of_device(accelerator: str) -> str:
    """The kind of device (cuda, cpu, mps) that a run's ``accelerator`` means here."""
    return default_device().type if accelerator == "auto" else accelerator


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16, which make training two to three times faster.

    Without them it is several times slower than 32 bits. Linux on x86 only: False elsewhere.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def trains_in_bf16(device: str) -> bool:
    """Whether a kind of device (cuda, cpu, mps) is faster in bfloat16 than in 32 bits."""
    return device == "cuda" or (device == "cpu" and multiplies_bf16())


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next step instead of returning them to the system.

    Activations of 32 MB and more are otherwise mapped anew at every allocation, and a CPU step spends a tenth of
    its time in page faults. Does nothing on other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
