// Attention of one head in float: softmax(scale * q k^T + mask) v.
#pragma once

#include "functions.h"
#include "kernels.h"

namespace sparse_accel {
namespace {

#define SPARSE_ACCEL_UNROLL _Pragma("GCC unroll 16")

// out[i][..] = sum over d of a[i][d] * b[d][..], for ROWS rows of a and VECTORS vectors of columns of b. The accumulators
// are ROWS x VECTORS registers.
template <class V, int ROWS, int VECTORS>
__attribute__((noinline)) void product(const float* a, int64_t stride_a, int64_t rows, const float* b, int64_t stride_b,
                                       int64_t depth, float* out, int64_t stride_out, int64_t columns) {
  using F = typename V::F;
  const float* row[ROWS];
  SPARSE_ACCEL_UNROLL for (int i = 0; i < ROWS; ++i) row[i] = a + (i < rows ? i : 0) * stride_a;
  F sums[ROWS][VECTORS];
  SPARSE_ACCEL_UNROLL for (int i = 0; i < ROWS; ++i)
    SPARSE_ACCEL_UNROLL for (int n = 0; n < VECTORS; ++n) sums[i][n] = V::zero();
  for (int64_t d = 0; d < depth; ++d, b += stride_b) {
    F right[VECTORS];
    SPARSE_ACCEL_UNROLL for (int n = 0; n < VECTORS; ++n) right[n] = V::load(b + n * V::WIDTH);
    SPARSE_ACCEL_UNROLL for (int i = 0; i < ROWS; ++i) {
      const F left = V::set(row[i][d]);
      SPARSE_ACCEL_UNROLL for (int n = 0; n < VECTORS; ++n) sums[i][n] = V::multiply_add(left, right[n], sums[i][n]);
    }
  }
  SPARSE_ACCEL_UNROLL for (int i = 0; i < ROWS; ++i) {
    if (i >= rows) return;
    SPARSE_ACCEL_UNROLL for (int n = 0; n < VECTORS; ++n)
      V::store_first(out + i * stride_out + n * V::WIDTH, sums[i][n], columns - n * V::WIDTH < 0 ? 0 : columns - n * V::WIDTH);
  }
}

// All columns of b: a multiple of WIDTH of them can be read, `columns` are stored.
template <class V, int ROWS>
void product_of_rows(const float* a, int64_t stride_a, int64_t rows, const float* b, int64_t stride_b, int64_t depth,
                     float* out, int64_t stride_out, int64_t columns) {
  for (int64_t n = 0; n < columns; n += 2 * V::WIDTH) {
    const int64_t left = columns - n;
    if (left > V::WIDTH)
      product<V, ROWS, 2>(a, stride_a, rows, b + n, stride_b, depth, out + n, stride_out, left);
    else
      product<V, ROWS, 1>(a, stride_a, rows, b + n, stride_b, depth, out + n, stride_out, left);
  }
}

// In place: weights[i] = e^(scale * weights[i] + mask[i] - the largest of these), not yet divided by their sum. Returns
// 1 / sum. The floats after `tokens`, up to a multiple of WIDTH, become zero.
template <class V>
float softmax(float* weights, const float* mask, int64_t tokens, float scale) {
  using F = typename V::F;
  const F factor = V::set(scale), nothing = V::set(-__builtin_inff());
  F largest = nothing;
  for (int64_t i = 0; i < tokens; i += V::WIDTH) {
    F value = V::multiply(V::load(weights + i), factor);
    if (mask) value = V::add(value, V::load_first(mask + i, tokens - i));
    value = V::first_or(value, tokens - i, nothing);
    V::store(weights + i, value);
    largest = V::at_least(value, largest);  // of those that are numbers; the others make the sum none
  }
  // A row of which all is masked by -inf has no largest number.
  float top = V::largest(largest);
  top = top < -3.4028235e38f ? -3.4028235e38f : top;
  F sums = V::zero();
  for (int64_t i = 0; i < tokens; i += V::WIDTH) {
    const F value = exp_of_negative<V>(V::subtract(V::load(weights + i), V::set(top)));
    const F weight = V::first_or(value, tokens - i, V::zero());
    V::store(weights + i, weight);
    sums = V::add(sums, weight);
  }
  return 1.0f / V::sum(sums);
}

template <class V, int ROWS>
void attention(const AttentionTask& task, float* scratch) {
  const int64_t tokens = task.tokens, size = task.head_size;
  const int64_t padded = padded_to_16(tokens), padded_size = padded_to_16(size);
  float* const keys = scratch;                         // [padded_size][padded]
  float* const values = keys + padded_size * padded;   // [padded][padded_size], only where a head is no whole vectors
  float* const weights = values + padded_size * padded;
  for (int64_t s = 0; s < tokens; s += V::WIDTH)
    for (int64_t d = 0; d < size; d += V::WIDTH) {
      const int64_t rows = tokens - s < V::WIDTH ? tokens - s : V::WIDTH;
      if (d + V::WIDTH <= size) {
        V::transpose(task.k + s * task.stride_k + d, task.stride_k, rows, keys + d * padded + s, padded);
      } else {
        for (int64_t i = 0; i < V::WIDTH; ++i)
          for (int64_t c = d; c < size; ++c) keys[c * padded + s + i] = i < rows ? task.k[(s + i) * task.stride_k + c] : 0;
      }
    }
  const bool whole = size % V::WIDTH == 0;
  for (int64_t s = 0; !whole && s < tokens; ++s)
    for (int64_t d = 0; d < padded_size; ++d) values[s * padded_size + d] = d < size ? task.v[s * task.stride_v + d] : 0;
  for (int64_t done = 0; done < task.queries; done += ROWS) {
    const int64_t query = task.first_query + done;
    const int64_t rows = task.queries - done < ROWS ? task.queries - done : ROWS;
    product_of_rows<V, ROWS>(task.q + query * task.stride_q, task.stride_q, rows, keys, padded, size, weights, padded, padded);
    float* y = task.y + query * task.stride_y;
    float inverse[ROWS];
    for (int64_t i = 0; i < rows; ++i) {
      const float* mask = task.mask ? task.mask + (query + i) * task.stride_mask : nullptr;
      inverse[i] = softmax<V>(weights + i * padded, mask, tokens, task.scale);
    }
    product_of_rows<V, ROWS>(weights, padded, rows, whole ? task.v : values, whole ? task.stride_v : padded_size, tokens, y,
                             task.stride_y, size);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < size; d += V::WIDTH) {
        float* at = y + i * task.stride_y + d;
        V::store_first(at, V::multiply(V::load_first(at, size - d), V::set(inverse[i])), size - d);
      }
  }
}

#undef SPARSE_ACCEL_UNROLL

}  // namespace
}  // namespace sparse_accel
