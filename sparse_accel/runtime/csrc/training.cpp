// What training calls: masks, fake quantization and dropout, on the threads of the caller's OpenMP.
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

// Calls work(first, count) on parts of n numbers.
template <class Work>
void in_parts(int64_t n, Parallel parallel, int32_t threads, const Work& work) {
  struct Parts {
    const Work& work;
    int64_t n;
    std::atomic<int64_t> next{0};
  } parts{work, n};
  const auto until_none_is_left = [](void* data) {
    Parts& of = *static_cast<Parts*>(data);
    for (;;) {
      const int64_t first = of.next.fetch_add(PART, std::memory_order_relaxed);
      if (first >= of.n) return;
      of.work(first, std::min(PART, of.n - first));
    }
  };
  const unsigned used = static_cast<unsigned>(std::min<int64_t>(threads, (n + PART - 1) / PART));
  if (parallel && used > 1)
    parallel(until_none_is_left, &parts, used, 0);
  else
    until_none_is_left(&parts);
}

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
