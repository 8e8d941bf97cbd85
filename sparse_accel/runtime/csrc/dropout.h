// Dropout of training. What is kept follows from a key and the position alone, so that the backward needs no mask: Philox
// with 4 words and 7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
#pragma once

#include <algorithm>
#include <cstdint>

#include "fake_quantize.h"
#include "kernels.h"

namespace sparse_accel {
namespace {

// Random numbers of 16 bits that are made at once, and the counters that make them, 128 bits each.
constexpr int64_t HALVES = 64, COUNTERS = 8;

// halves [HALVES] of the counters from `counter` on. Of a counter's four words, the first two are in the first half of
// the array, so that a vector stores whole words side by side.
template <class V>
[[gnu::always_inline]] inline void random_halves(uint64_t key, uint64_t counter, uint16_t* halves) {
  using L = typename V::L;
  for (int64_t i = 0; i < COUNTERS; i += V::LONGS) {
    L a = V::longs_from(counter + static_cast<uint64_t>(i)), b = V::upper(a), c = V::no_longs(), d = c;
    uint32_t first = static_cast<uint32_t>(key), second = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 7; ++round) {  // only the lower halves of the longs count
      const L of_a = V::product_of_lower(a, 0xD2511F53u), of_c = V::product_of_lower(c, 0xCD9E8D57u);
      a = V::differing(V::upper(of_c), b, first);
      b = of_c;
      c = V::differing(V::upper(of_a), d, second);
      d = of_a;
      first += 0x9E3779B9u;
      second += 0xBB67AE85u;
    }
    V::store_lower(halves + 4 * i, a, b);
    V::store_lower(halves + HALVES / 2 + 4 * i, c, d);
  }
}

template <class V>
void dropout(const DropoutTask& task, int64_t first, int64_t count) {
  const typename V::F scale = V::set(task.scale);
  for (int64_t begin = first; begin < first + count; begin += HALVES) {
    alignas(64) uint16_t halves[HALVES];
    random_halves<V>(task.key, static_cast<uint64_t>(begin / HALVES) * COUNTERS, halves);
    const int64_t n = std::min(HALVES, first + count - begin);
    for (int64_t i = 0; i < n; i += V::WIDTH) {
      const typename V::F x = V::multiply(loaded<V>(task.x, begin + i, n - i), scale);
      stored<V>(task.y, begin + i, n - i, V::where_at_least(halves + i, task.dropped, x));
    }
  }
}

}  // namespace
}  // namespace sparse_accel
