// Linear and feed-forward block of a tile of tokens. Integers is the instruction set's part: it writes quantized activations
// in its layout, and gives the int32 sums of a matrix piece by piece, a vector of outputs of one token each.
#pragma once

#include "functions.h"
#include "kernels.h"

namespace sparse_accel {
namespace {

template <class V, class Integers>
void quantize(const Matrix& matrix, const float* x, int64_t tokens, uint8_t* to) {
  const int64_t columns = matrix.packed.header.columns;
  for (int64_t token = 0; token < tokens; ++token, x += columns) {
    typename Integers::Row row(matrix, to, token);
    int64_t k = 0;
    for (; k + V::WIDTH <= columns; k += V::WIDTH) row.put(k, quantized<V>(V::load(x + k), matrix.input));
    if (k < columns) row.put(k, quantized<V>(V::load_first(x + k, columns - k), matrix.input));
  }
}

// y of the outputs from `row` on: their sums, scaled, plus the bias.
template <class V>
[[gnu::always_inline]] inline typename V::F result(const Matrix& matrix, int64_t row, typename V::I sums) {
  return V::multiply_add(V::to_float(sums), V::load(matrix.scale + row), V::load(matrix.bias + row));
}

// Stores y = y + residual where there is a residual, without what is beyond the last output.
template <class V>
[[gnu::always_inline]] inline void store(float* y, typename V::F value, const float* residual, int64_t outputs_left) {
  if (outputs_left >= V::WIDTH) {
    V::store(y, residual ? V::add(value, V::load(residual)) : value);
  } else if (outputs_left > 0) {
    V::store_first(y, residual ? V::add(value, V::load_first(residual, outputs_left)) : value, outputs_left);
  }
}

template <class V, class Integers>
void linear(const LinearTask& task, int64_t first, int64_t tokens, uint8_t* scratch) {
  const Matrix& matrix = *task.matrix;
  const int64_t rows = matrix.packed.header.rows;
  quantize<V, Integers>(matrix, task.x + first * matrix.packed.header.columns, tokens, scratch);
  float* y = task.y + first * rows;
  const float* residual = task.residual ? task.residual + first * rows : nullptr;
  Integers::multiply(matrix, scratch, tokens, [&](int64_t token, int64_t row, typename V::I sums) {
    const typename V::F value = activated<V>(result<V>(matrix, row, sums), task.activation);
    store<V>(y + token * rows + row, value, residual ? residual + token * rows + row : nullptr, rows - row);
  });
  if (!task.gamma) return;
  for (int64_t token = 0; token < tokens; ++token)
    normalize<V>(y + token * rows, task.gamma, task.beta, rows, task.epsilon);
}

template <class V, class Integers>
void feed_forward(const FeedForwardTask& task, int64_t first, int64_t tokens, uint8_t* scratch) {
  const Matrix& up = *task.first;
  const Matrix& down = *task.second;
  const int64_t columns = up.packed.header.columns, rows = down.packed.header.rows;
  const int64_t bytes = activation_bytes(up.packed.header.encoding, columns, tokens);
  uint8_t* hidden = scratch + (bytes + 63) / 64 * 64;
  const float* x = task.x + first * columns;
  float* y = task.y + first * rows;
  quantize<V, Integers>(up, x, tokens, scratch);
  // The hidden units stay in the order in which they are packed: the second matrix reads them in this order.
  Integers::multiply(up, scratch, tokens, [&](int64_t token, int64_t row, typename V::I sums) {
    const typename V::F value = activated<V>(result<V>(up, row, sums), task.activation);
    typename Integers::Row(down, hidden, token).put(row, quantized<V>(value, down.input));
  });
  Integers::multiply(down, hidden, tokens, [&](int64_t token, int64_t row, typename V::I sums) {
    const int64_t at = token * rows + row;
    store<V>(y + at, result<V>(down, row, sums), x + at, rows - row);
  });
  for (int64_t token = 0; token < tokens; ++token)
    normalize<V>(y + token * rows, task.gamma, task.beta, rows, task.epsilon);
}

// The int32 sums alone, of activations that are integers already: out [tokens][rows], in the order of rows.
template <class V, class Integers>
void sums(const Matrix& matrix, const uint8_t* x, int64_t tokens, int32_t* out, uint8_t* scratch) {
  const int64_t columns = matrix.packed.header.columns, rows = matrix.packed.header.rows;
  for (int64_t token = 0; token < tokens; ++token) {
    typename Integers::Row row(matrix, scratch, token);
    for (int64_t k = 0; k < columns; k += V::WIDTH) {
      alignas(64) int32_t values[V::WIDTH] = {};
      for (int64_t i = 0; i < V::WIDTH && k + i < columns; ++i) values[i] = x[token * columns + k + i];
      row.put(k, V::load_int(values));
    }
  }
  Integers::multiply(matrix, scratch, tokens, [&](int64_t token, int64_t row, typename V::I found) {
    alignas(64) int32_t values[V::WIDTH];
    V::store_int(values, found);
    for (int64_t i = 0; i < V::WIDTH; ++i) {
      const int64_t at = matrix.packed.header.ordered ? matrix.packed.order[row + i] : row + i;
      if (at < rows) out[token * rows + at] = values[i];
    }
  });
}

}  // namespace
}  // namespace sparse_accel
