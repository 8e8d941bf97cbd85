"""What the CPU of this machine can do. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

# Instructions that multiply bfloat16: two of x86-64, and that of ARM.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def bfloat16_is_fast() -> bool:
    """Returns whether the CPU multiplies bfloat16 itself, which makes a training step faster; others emulate it."""
    return bool(_BFLOAT16 & cpu_flags())


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the instruction sets that all CPUs of this machine have, as Linux names them; empty on other systems.

    Args:
        cpuinfo: file with a line of `flags` (x86-64) or `Features` (ARM) for each CPU.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    pairs = (line.partition(":") for line in lines)
    found = [frozenset(words.split()) for name, _, words in pairs if name.strip() in ("flags", "Features")]
    return frozenset.intersection(*found) if found else frozenset()
