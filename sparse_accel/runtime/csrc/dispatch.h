// Which kernels this CPU can run, and which are used.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace sparse_accel {

// Those that this CPU can run, the best first. The portable ones are always among them.
std::vector<const Kernels*> kernels_of_this_cpu();

// Those that are used unless others are forced; null where the plain operators of onnxruntime are better or nobody has
// measured: CPUs with AMX, and CPUs without AVX2.
const Kernels* default_kernels();

// Those of a name, or null if this CPU cannot run them.
const Kernels* kernels_named(const std::string& name);

// Those that SPARSE_ACCEL_ISA names, else the default ones; null if there are none.
const Kernels* chosen_kernels();

}  // namespace sparse_accel
