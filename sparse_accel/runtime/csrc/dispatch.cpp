#include "dispatch.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sparse_accel {
namespace {

struct Cpu {
  bool avx2 = false, avx512 = false, avx512_vnni = false, avx512_vbmi = false, avx_vnni = false, amx = false;
};

#if defined(__x86_64__)

// Which registers the operating system saves and restores: bits of XCR0.
uint64_t saved_registers() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Bits as in Intel's manual, volume 2A, CPUID.
Cpu detect() {
  Cpu cpu;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return cpu;
  const bool fma = c >> 12 & 1, saves = c >> 27 & 1;
  if (!saves) return cpu;
  const uint64_t registers = saved_registers();
  const bool ymm = (registers & 0x6) == 0x6, zmm = (registers & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
  cpu.avx2 = ymm && fma && b >> 5 & 1;
  const bool bmi2 = b >> 8 & 1;
  const uint32_t wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  cpu.avx512 = cpu.avx2 && bmi2 && zmm && (b & wanted) == wanted;
  cpu.avx512_vnni = cpu.avx512 && c >> 11 & 1;
  cpu.avx512_vbmi = cpu.avx512_vnni && c >> 1 & 1;
  cpu.amx = d >> 25 & 1;  // AMX-INT8
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.avx_vnni = cpu.avx2 && a >> 4 & 1;
  return cpu;
}

#else

Cpu detect() { return {}; }

#endif

const Cpu& cpu() {
  static const Cpu found = detect();
  return found;
}

}  // namespace

std::vector<const Kernels*> kernels_of_this_cpu() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  if (cpu().avx512_vbmi) found.push_back(&avx512_vbmi_kernels);
  if (cpu().avx512_vnni) found.push_back(&avx512_vnni_kernels);
#if !defined(SPARSE_ACCEL_NO_AVX_VNNI)
  if (cpu().avx_vnni) found.push_back(&avx_vnni_kernels);
#endif
  if (cpu().avx2) found.push_back(&avx2_kernels);
#endif
  found.push_back(&portable_kernels);
  return found;
}

const Kernels* default_kernels() {
  const Kernels* best = kernels_of_this_cpu().front();
  return cpu().amx || best == &portable_kernels ? nullptr : best;
}

const Kernels* kernels_named(const std::string& name) {
  for (const Kernels* kernels : kernels_of_this_cpu())
    if (kernels->name == name) return kernels;
  return nullptr;
}

const Kernels* chosen_kernels() {
  const char* forced = std::getenv("SPARSE_ACCEL_ISA");
  return forced && *forced ? kernels_named(forced) : default_kernels();
}

}  // namespace sparse_accel
