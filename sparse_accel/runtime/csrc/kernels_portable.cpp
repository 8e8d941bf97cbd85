// Plain C++, without any vector instruction: always right, and slow. For tests.
#include "attention.h"
#include "attention_weights.h"
#include "dropout.h"
#include "fake_quantize.h"
#include "lookup.h"
#include "tile.h"
#include "vector_portable.h"

namespace sparse_accel {
namespace {

struct Integers {
  struct Row {
    uint8_t* begin;
    Row(const Matrix& matrix, uint8_t* activations, int64_t token)
        : begin(activations + token * row_stride(matrix.packed.header.columns)) {}
    void put(int64_t k, int32_t integer) { begin[k] = static_cast<uint8_t>(integer); }
  };

  template <class Out>
  static void multiply(const Matrix& matrix, const uint8_t* activations, int64_t tokens, const Out& out) {
    const int64_t rows = matrix.packed.header.rows, columns = matrix.packed.header.columns;
    for (int64_t token = 0; token < tokens; ++token)
      for (int64_t row = 0; row < rows; ++row) {
        const uint8_t* a = activations + token * row_stride(columns);
        const int8_t* w = reinterpret_cast<const int8_t*>(matrix.packed.weights) + row * columns;
        // Unsigned: a damaged row sum may wrap around, as it does in the other kernels.
        uint32_t sum = static_cast<uint32_t>(matrix.start[row]);
        for (int64_t k = 0; k < columns; ++k) sum += static_cast<uint32_t>(int32_t{a[k]} * int32_t{w[k]});
        out(token, row, static_cast<int32_t>(sum));
      }
  }
};

}  // namespace

const Kernels portable_kernels = {
    "portable", ROWS, ROWS, true, 1.0, linear<Vector1, Integers>, feed_forward<Vector1, Integers>, attention<Vector1, 1>,
    lookup<Vector1>, fake_quantize<Vector1>, dropout<Vector1>, attention_weights<Vector1>, attention_gradient<Vector1>, sums<Vector1, Integers>};

}  // namespace sparse_accel
