// Rows of an embedding table of 8-bit integers, as floats.
#pragma once

#include "functions.h"
#include "kernels.h"

namespace sparse_accel {
namespace {

template <class V>
void lookup_row(const LookupTask& task, const uint8_t* row, float* y) {
  using F = typename V::F;
  const F scale = V::set(task.scale);
  const typename V::I minus_zero = V::set_int(-task.zero_point);
  for (int64_t k = 0; k < task.size; k += V::WIDTH) {
    const int64_t left = task.size - k;
    const typename V::I integers = V::load_bytes(row + k, left, task.is_signed);
    F value = V::multiply(V::to_float(V::add_int(integers, minus_zero)), scale);
    if (task.output) {
      const typename V::I again = quantized<V>(value, *task.output);
      const typename V::I from_zero = V::add_int(again, V::set_int(-task.output->zero_point));
      value = V::multiply(V::to_float(from_zero), V::set(task.output->scale));
    }
    V::store_first(y + k, value, left);
  }
}

template <class V>
bool lookup(const LookupTask& task, int64_t first, int64_t count) {
  for (int64_t i = first; i < first + count; ++i) {
    const int64_t id = task.ids[i] < 0 ? task.ids[i] + task.entries : task.ids[i];
    if (id < 0 || id >= task.entries) return false;
    lookup_row<V>(task, task.table + id * task.size, task.y + i * task.size);
  }
  return true;
}

}  // namespace
}  // namespace sparse_accel
