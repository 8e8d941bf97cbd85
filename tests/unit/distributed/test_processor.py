"""The instruction sets of CPUs, from files such as Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_accel.distributed import processor
from sparse_accel.distributed.processor import bfloat16_is_fast, cpu_flags

ZEN_4 = (
    "processor\t: {}\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512_bf16 avx512_vnni\nbugs\t\t: amx_bf16\n"
)
SAPPHIRE_RAPIDS = "processor\t: {}\nmodel name\t: Intel Xeon\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16 amx_tile\n"
HASWELL = "processor\t: {}\nmodel name\t: a bf16 CPU\nflags\t\t: fpu avx2 fma\n"
GRAVITON_3 = "processor\t: {}\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd i8mm bf16 dgh\nCPU part\t: 0xd40\n"
GRAVITON_2 = "processor\t: {}\nFeatures\t: fp asimd crc32\n"


@pytest.mark.parametrize(
    ("cpus", "fast"),
    [
        ([ZEN_4, ZEN_4], True),
        ([SAPPHIRE_RAPIDS], True),
        ([GRAVITON_3], True),
        ([HASWELL], False),
        ([GRAVITON_2], False),
        ([GRAVITON_3, GRAVITON_2], False),  # a thread may run on either
        ([], False),
    ],
)
def test_which_cpus_multiply_bfloat16(
    cpus: list[str], fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("\n".join(cpu.format(number) for number, cpu in enumerate(cpus)))
    found = cpu_flags(file)
    monkeypatch.setattr(processor, "cpu_flags", lambda: found)
    assert bfloat16_is_fast() == fast


def test_a_system_without_that_file(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "cpuinfo") == frozenset() == cpu_flags(tmp_path)
