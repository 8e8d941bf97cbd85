// Masks and fake quantization of training, and their gradients, in one pass over the memory.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "kernels.h"

namespace sparse_accel {
namespace {

template <class V>
[[gnu::always_inline]] inline typename V::F masked(const FakeQuantizeTask& task, int64_t i, int64_t n, typename V::F x) {
  return task.mask ? V::where_kept(task.mask + i, n, x) : x;
}

template <class V>
[[gnu::always_inline]] inline typename V::F loaded(const Floats<const void>& from, int64_t i, int64_t n) {
  return from.bfloat16 ? V::load_first(static_cast<const Bfloat16*>(from.data) + i, n)
                   : V::load_first(static_cast<const float*>(from.data) + i, n);
}

template <class V>
[[gnu::always_inline]] inline void stored(const Floats<void>& to, int64_t i, int64_t n, typename V::F value) {
  to.bfloat16 ? V::store_first(static_cast<Bfloat16*>(to.data) + i, value, n)
          : V::store_first(static_cast<float*>(to.data) + i, value, n);
}

template <class V>
void fake_quantize_forwards(const FakeQuantizeTask& task, int64_t first, int64_t end, Extremes& extremes) {
  using F = typename V::F;
  const F scale = V::set(task.scale), inverse = V::set(task.inverse);
  const F lowest = V::set(task.lowest), highest = V::set(task.highest);
  F smallest = V::set(extremes.smallest), largest = V::set(extremes.largest), nan = V::zero();
  for (int64_t i = first; i < end; i += V::WIDTH) {
    const int64_t n = end - i;
    const F x = masked<V>(task, i, n, loaded<V>(task.x, i, n));
    smallest = V::at_most(smallest, V::first_or(x, n, smallest));
    largest = V::at_least(largest, V::first_or(x, n, largest));
    nan = V::add(nan, V::only_nan(x));
    if (!task.y.data) continue;
    F y = x;
    if (task.rounds) {
      // What is no number stays none: see at_least and at_most.
      const F integer = V::at_most(highest, V::at_least(lowest, V::rounded(V::multiply(x, inverse))));
      y = V::multiply(integer, scale);
    }
    stored<V>(task.y, i, n, y);
  }
  const float any = V::sum(nan);
  extremes.smallest = any == any ? -V::largest(V::subtract(V::zero(), smallest)) : any;
  extremes.largest = any == any ? V::largest(largest) : any;
}

template <class V>
void fake_quantize_gradient(const FakeQuantizeTask& task, int64_t first, int64_t end) {
  using F = typename V::F;
  const F inverse = V::set(task.inverse), below = V::set(task.lowest - 1.0f), above = V::set(task.highest + 1.0f);
  for (int64_t i = first; i < end; i += V::WIDTH) {
    const int64_t n = end - i;
    F gradient = masked<V>(task, i, n, loaded<V>(task.gradient, i, n));
    if (task.rounds) {
      const F x = masked<V>(task, i, n, loaded<V>(task.x, i, n));
      gradient = V::where_inside(V::rounded(V::multiply(x, inverse)), below, above, gradient);
    }
    stored<V>(task.y, i, n, gradient);
  }
}

template <class V>
Extremes fake_quantize(const FakeQuantizeTask& task, int64_t first, int64_t count) {
  Extremes extremes{__builtin_inff(), -__builtin_inff()};
  if (task.gradient.data)
    fake_quantize_gradient<V>(task, first, first + count);
  else
    fake_quantize_forwards<V>(task, first, first + count, extremes);
  return extremes;
}

}  // namespace
}  // namespace sparse_accel
