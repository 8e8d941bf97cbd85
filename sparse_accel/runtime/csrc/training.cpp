// What training calls: masks and fake quantization, on the threads of the caller's OpenMP.
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

struct Shared {
  const Kernels& kernels;
  const FakeQuantizeTask& task;
  int64_t n;
  std::atomic<int64_t> next{0};
  std::mutex one_at_a_time{};
  Extremes extremes{__builtin_inff(), -__builtin_inff()};
};

void merge(Extremes& into, const Extremes& part) {
  // What is no number stays, whichever part has it.
  if (!(part.smallest >= into.smallest) && into.smallest == into.smallest) into.smallest = part.smallest;
  if (!(part.largest <= into.largest) && into.largest == into.largest) into.largest = part.largest;
}

// Works on parts until none is left.
void work(void* data) {
  Shared& shared = *static_cast<Shared*>(data);
  Extremes found{__builtin_inff(), -__builtin_inff()};
  for (;;) {
    const int64_t first = shared.next.fetch_add(PART, std::memory_order_relaxed);
    if (first >= shared.n) break;
    merge(found, shared.kernels.fake_quantize(shared.task, first, std::min(PART, shared.n - first)));
  }
  const std::lock_guard<std::mutex> lock(shared.one_at_a_time);
  merge(shared.extremes, found);
}

}  // namespace

// y [n] = x where mask is not 0, else 0; with a scale, not 0, rounded to its grid and clipped to the integers from lowest to
// highest. With a gradient [n], y is the gradient of x instead. mask and gradient may be null; y, if only the extremes are
// wanted; y may be x or gradient of its own format. x, gradient and y are float, or bfloat16 where `halves` has the bit 1,
// 2 and 4; all is computed in float. seen_smallest and seen_largest, or null, are lowered and raised to the extremes of the
// masked x. Returns 0, or 1 if this CPU has no such instruction set.
SPARSE_ACCEL_EXPORT int32_t sparse_accel_fake_quantize(const char* isa, const void* x, const uint8_t* mask, const void* gradient,
                                                       void* y, int32_t halves, int64_t n, float scale, int32_t zero_point,
                                                       int32_t lowest, int32_t highest, float* seen_smallest, float* seen_largest,
                                                       Parallel parallel, int32_t threads) {
  const Kernels* kernels = kernels_named(isa);
  if (!kernels) return 1;
  const FakeQuantizeTask task{{x, (halves & 1) != 0}, mask, {gradient, (halves & 2) != 0}, {y, (halves & 4) != 0},
                              scale != 0.0f, scale, 1.0f / scale,
                              static_cast<float>(lowest - zero_point), static_cast<float>(highest - zero_point)};
  Shared shared{*kernels, task, n};
  const int64_t parts = (n + PART - 1) / PART;
  const unsigned used = static_cast<unsigned>(std::min<int64_t>(threads, parts));
  if (parallel && used > 1)
    parallel(work, &shared, used, 0);
  else
    work(&shared);
  if (seen_smallest) {
    Extremes seen{*seen_smallest, *seen_largest};
    merge(seen, shared.extremes);
    *seen_smallest = seen.smallest;
    *seen_largest = seen.largest;
  }
  return 0;
}
