// The bits of a bfloat16 number: the upper half of a float.
#pragma once

#include <cstdint>

namespace sparse_accel {

struct Bfloat16 {
  uint16_t bits;
};

}  // namespace sparse_accel
