// What training calls: masks, fake quantization, dropout and attention's weights, on the threads of the caller's OpenMP.
#include <algorithm>
#include <atomic>
#include <mutex>

#include "dispatch.h"

#define SPARSE_ACCEL_EXPORT extern "C" __attribute__((visibility("default")))

using namespace sparse_accel;

namespace {

// GOMP_parallel of libgomp: calls work(data) on so many threads, and returns when all have.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Numbers for one thread at a time, as in PyTorch: less is not worth waking one.
constexpr int64_t PART = 32768;
static_assert(PART % 64 == 0, "as dropout needs it");

// Calls work(first, count) on parts of n numbers, or of n rows.
template <class Work>
void in_parts(int64_t n, Parallel parallel, int32_t threads, const Work& work, int64_t part = PART) {
  struct Parts {
    const Work& work;
    int64_t n, part;
    std::atomic<int64_t> next{0};
  } parts{work, n, part};
  const auto until_none_is_left = [](void* data) {
    Parts& of = *static_cast<Parts*>(data);
    for (;;) {
      const int64_t first = of.next.fetch_add(of.part, std::memory_order_relaxed);
      if (first >= of.n) return;
      of.work(first, std::min(of.part, of.n - first));
    }
  };
  const unsigned used = static_cast<unsigned>(std::min<int64_t>(threads, (n + part - 1) / part));
  if (parallel && used > 1)
    parallel(until_none_is_left, &parts, used, 0);
  else
    until_none_is_left(&parts);
}

// Rows for one thread at a time, a multiple of 64.
int64_t rows_at_a_time(int64_t columns) { return std::max<int64_t>(1, PART / 64 / columns) * 64; }

void merge(Extremes& into, const Extremes& part) {
  // What is no number stays, whichever part has it.
  if (!(part.smallest >= into.smallest) && into.smallest == into.smallest) into.smallest = part.smallest;
  if (!(part.largest <= into.largest) && into.largest == into.largest) into.largest = part.largest;
}

}  // namespace

// y [n] = x where mask is not 0, else 0; with a scale, not 0, rounded to its grid and clipped to the integers from lowest to
// highest. With a gradient [n], y is the gradient of x instead. mask and gradient may be null; y, if only the extremes are
// wanted; y may be x or gradient of its own format. x, gradient and y are float, or bfloat16 where `bfloat16` has the bit 1,
// 2 and 4; all is computed in float. seen_smallest and seen_largest, or null, are lowered and raised to the extremes of the
// masked x. Returns 0, or 1 if this CPU has no such instruction set.
SPARSE_ACCEL_EXPORT int32_t sparse_accel_fake_quantize(const char* isa, const void* x, const uint8_t* mask, const void* gradient,
                                                       void* y, int32_t bfloat16, int64_t n, float scale, int32_t zero_point,
                                                       int32_t lowest, int32_t highest, float* seen_smallest, float* seen_largest,
                                                       Parallel parallel, int32_t threads) {
  const Kernels* kernels = kernels_named(isa);
  if (!kernels) return 1;
  const FakeQuantizeTask task{{x, (bfloat16 & 1) != 0}, mask, {gradient, (bfloat16 & 2) != 0}, {y, (bfloat16 & 4) != 0},
                              scale != 0.0f, scale, 1.0f / scale,
                              static_cast<float>(lowest - zero_point), static_cast<float>(highest - zero_point)};
  Extremes seen{__builtin_inff(), -__builtin_inff()};
  std::mutex one_at_a_time;
  in_parts(n, parallel, threads, [&](int64_t first, int64_t count) {
    const Extremes part = kernels->fake_quantize(task, first, count);
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    merge(seen, part);
  });
  if (seen_smallest) {
    Extremes before{*seen_smallest, *seen_largest};
    merge(before, seen);
    *seen_smallest = before.smallest;
    *seen_largest = before.largest;
  }
  return 0;
}

// y [n] = x * scale, or 0 for `dropped` of 65,536; which ones follows from the key and the position. y may be x of its own
// format: both are float, or bfloat16 where `bfloat16` has the bit 1 and 4. Returns as sparse_accel_fake_quantize.
SPARSE_ACCEL_EXPORT int32_t sparse_accel_dropout(const char* isa, const void* x, void* y, int32_t bfloat16, int64_t n, uint64_t key,
                                                 int32_t dropped, float scale, Parallel parallel, int32_t threads) {
  const Kernels* kernels = kernels_named(isa);
  if (!kernels) return 1;
  const DropoutTask task{{x, (bfloat16 & 1) != 0}, {y, (bfloat16 & 4) != 0}, key, dropped, scale};
  in_parts(n, parallel, threads, [&](int64_t first, int64_t count) { kernels->dropout(task, first, count); });
  return 0;
}

// weights [rows][columns] = softmax of the rows of scores * scale + mask; dropped, of the same format, = dropout of these, as
// sparse_accel_dropout has it. mask is null, or float, contiguous in columns; row r is of query r % queries, of head
// r / queries % heads, of text r / queries / heads, and `strides` are those of text, head and query, in floats. scores and
// weights are float, or bfloat16 where `bfloat16` has the bit 1 and 4. Returns 0; 1 as sparse_accel_fake_quantize; 2 if there
// are too many columns.
SPARSE_ACCEL_EXPORT int32_t sparse_accel_attention_weights(const char* isa, const void* scores, const float* mask, void* weights,
                                                           void* dropped_weights, int32_t bfloat16, int64_t rows, int64_t columns,
                                                           int64_t heads, int64_t queries, const int64_t* strides, float scale,
                                                           uint64_t key, int32_t dropped, float factor, Parallel parallel,
                                                           int32_t threads) {
  const Kernels* kernels = kernels_named(isa);
  if (!kernels) return 1;
  if (columns > MOST_KEYS) return 2;
  const bool half = (bfloat16 & 4) != 0;
  const AttentionWeightsTask task{{scores, (bfloat16 & 1) != 0}, mask, heads, queries, mask ? strides[0] : 0, mask ? strides[1] : 0,
                                  mask ? strides[2] : 0, columns, scale, {weights, half},
                                  {{weights, half}, {dropped_weights, half}, key, dropped, factor}};
  in_parts(rows, parallel, threads, [&](int64_t first, int64_t count) { kernels->attention_weights(task, first, count); },
           rows_at_a_time(columns));
  return 0;
}

// gradient [rows][columns] of the dropped weights becomes that of the scores, in place. weights and gradient are float, or
// bfloat16 where `bfloat16` has the bit 1 and 4. The others as in sparse_accel_attention_weights. Returns 0, or 1 as there.
SPARSE_ACCEL_EXPORT int32_t sparse_accel_attention_gradient(const char* isa, const void* weights, void* gradient, int32_t bfloat16,
                                                            int64_t rows, int64_t columns, float scale, uint64_t key,
                                                            int32_t dropped, float factor, Parallel parallel, int32_t threads) {
  const Kernels* kernels = kernels_named(isa);
  if (!kernels) return 1;
  const bool half = (bfloat16 & 4) != 0;
  const AttentionGradientTask task{{weights, (bfloat16 & 1) != 0}, columns, scale, {{gradient, half}, {gradient, half}, key, dropped, factor}};
  in_parts(rows, parallel, threads, [&](int64_t first, int64_t count) { kernels->attention_gradient(task, first, count); },
           rows_at_a_time(columns));
  return 0;
}
