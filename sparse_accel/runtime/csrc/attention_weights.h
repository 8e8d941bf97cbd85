// Attention's softmax and dropout of training, and their gradient, in one pass over the memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dropout.h"
#include "fake_quantize.h"
#include "functions.h"
#include "kernels.h"

namespace sparse_accel {
namespace {

// Rows that are dropped at once: of whole groups of random numbers, whatever the columns.
constexpr int64_t ROWS_AT_ONCE = HALVES;

template <class V>
[[gnu::always_inline]] inline typename V::F score(const AttentionWeightsTask& task, const float* mask, int64_t row, int64_t i) {
  const int64_t n = task.columns - i;
  const typename V::F x = V::multiply(loaded<V>(task.scores, row * task.columns + i, n), V::set(task.scale));
  return mask ? V::add(x, V::load_first(mask + i, n)) : x;
}

// A row whose scores are all -inf becomes 0. A NaN makes its row NaN.
template <class V>
void softmax_of_row(const AttentionWeightsTask& task, const float* mask, int64_t row) {
  using F = typename V::F;
  const F nothing = V::set(-__builtin_inff());
  F largest = nothing;
  for (int64_t i = 0; i < task.columns; i += V::WIDTH)
    largest = V::at_least(V::first_or(score<V>(task, mask, row, i), task.columns - i, nothing), largest);
  const F top = V::set(std::max(V::largest(largest), -3.4028235e38f));
  alignas(64) float exponentials[MOST_KEYS];
  F sums = V::zero();
  for (int64_t i = 0; i < task.columns; i += V::WIDTH) {
    const F below = V::subtract(score<V>(task, mask, row, i), top);
    // exp_of_negative never returns 0: what is masked is set to 0 here.
    F value = V::where_inside(below, V::set(-87.0f), V::set(1.0f), exp_of_negative<V>(below));
    value = V::first_or(V::add(value, V::only_nan(below)), task.columns - i, V::zero());
    V::store(exponentials + i, value);
    sums = V::add(sums, value);
  }
  const float sum = V::sum(sums);
  const F factor = V::set(sum == 0.0f ? 0.0f : 1.0f / sum);
  for (int64_t i = 0; i < task.columns; i += V::WIDTH)
    stored<V>(task.weights, row * task.columns + i, task.columns - i, V::multiply(V::load(exponentials + i), factor));
}

template <class V>
void attention_weights(const AttentionWeightsTask& task, int64_t first, int64_t count) {
  for (int64_t done = 0; done < count; done += ROWS_AT_ONCE) {
    const int64_t begin = first + done, rows = std::min(ROWS_AT_ONCE, count - done);
    for (int64_t row = begin; row < begin + rows; ++row) {
      const int64_t head = row / task.queries, text = head / task.heads;
      const float* mask = task.mask ? task.mask + text * task.stride_text + head % task.heads * task.stride_head +
                                          row % task.queries * task.stride_query
                                    : nullptr;
      softmax_of_row<V>(task, mask, row);
    }
    dropout<V>(task.dropout, begin * task.columns, rows * task.columns);
  }
}

// With weights w and their gradient g: the gradient of a score is scale w (g - sum of w g).
template <class V>
void attention_gradient(const AttentionGradientTask& task, int64_t first, int64_t count) {
  using F = typename V::F;
  const Floats<void>& gradient = task.dropout.y;
  const Floats<const void> read{gradient.data, gradient.bfloat16};
  const int64_t columns = task.columns;
  for (int64_t done = 0; done < count; done += ROWS_AT_ONCE) {
    const int64_t begin = first + done, rows = std::min(ROWS_AT_ONCE, count - done);
    dropout<V>(task.dropout, begin * columns, rows * columns);
    for (int64_t at = begin * columns; at < (begin + rows) * columns; at += columns) {
      F products = V::zero();
      for (int64_t i = 0; i < columns; i += V::WIDTH)  // what is loaded after the row is 0
        products = V::multiply_add(loaded<V>(task.weights, at + i, columns - i), loaded<V>(read, at + i, columns - i), products);
      const F sum = V::set(V::sum(products)), scale = V::set(task.scale);
      for (int64_t i = 0; i < columns; i += V::WIDTH) {
        const F weight = V::multiply(loaded<V>(task.weights, at + i, columns - i), scale);
        stored<V>(gradient, at + i, columns - i, V::multiply(weight, V::subtract(loaded<V>(read, at + i, columns - i), sum)));
      }
    }
  }
}

}  // namespace
}  // namespace sparse_accel
