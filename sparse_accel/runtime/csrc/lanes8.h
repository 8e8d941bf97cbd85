// Integer sums with 256-bit registers: sparse matrices as LANES8. Before including it, a kernel file defines
// `add_products`, with which it adds the 4 products of each lane.
#pragma once

#include "kernels.h"
#include "vector_avx2.h"

namespace sparse_accel {
namespace {

#define SPARSE_ACCEL_UNROLL _Pragma("GCC unroll 16")

struct Integers {
  using Vector = Vector256;
  using I = Vector::I;

  // Where one token's quantized activations go; `put` takes 8 of them, from a multiple of 8 on.
  struct Row {
    uint8_t* begin;
    Row(const Matrix& matrix, uint8_t* activations, int64_t token)
        : begin(activations + token * row_stride(matrix.packed.header.columns)) {}
    void put(int64_t k, I integers) { Vector::store_bytes(begin + k, integers); }
  };

  // The sums of one group for TOKENS tokens, to out[token][8]: the window's 16 bytes are in both halves of a register, and
  // each half is shuffled by the positions of its 4 lanes.
  template <int TOKENS>
  static __attribute__((noinline)) void group(const uint8_t* set, const uint16_t* window, const uint16_t* end,
                                              const uint8_t* activations, int64_t stride, const int32_t* start,
                                              int32_t* out) {
    I acc[TOKENS];
    SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) acc[t] = Vector::load_int(start);
    for (; window < end; ++window, set += 64) {
      const uint8_t* from = activations + *window;
      const I index = _mm256_loadu_si256(reinterpret_cast<const I*>(set));
      const I weights = _mm256_loadu_si256(reinterpret_cast<const I*>(set + 32));
      SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + t * stride));
        add_products(acc[t], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), index), weights);
      }
    }
    SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) Vector::store_int(out + 8 * t, acc[t]);
  }

  template <int TOKENS, class Out>
  static void block(const Matrix& matrix, const uint8_t* activations, int64_t first, const Out& out) {
    const Packed& packed = matrix.packed;
    const int64_t stride = row_stride(packed.header.columns);
    alignas(32) int32_t sums[8 * TOKENS];
    for (int64_t g = 0; g < packed.header.groups; ++g) {
      const uint32_t begin = packed.begin[g], end = packed.begin[g + 1];
      group<TOKENS>(packed.weights + int64_t{begin} * 64, packed.windows + begin, packed.windows + end,
                    activations + first * stride, stride, matrix.start + g * 8, sums);
      for (int t = 0; t < TOKENS; ++t) out(first + t, g * 8, Vector::load_int(sums + 8 * t));
    }
  }

  // Calls out(token, output, sums of 8 outputs from there on) for all tokens and outputs.
  template <class Out>
  static void multiply(const Matrix& matrix, const uint8_t* activations, int64_t tokens, const Out& out) {
    int64_t t = 0;
    for (; tokens - t >= 8; t += 8) block<8>(matrix, activations, t, out);
    if (tokens - t >= 4) block<4>(matrix, activations, t, out), t += 4;
    if (tokens - t >= 2) block<2>(matrix, activations, t, out), t += 2;
    if (tokens - t >= 1) block<1>(matrix, activations, t, out);
  }
};

#undef SPARSE_ACCEL_UNROLL

}  // namespace
}  // namespace sparse_accel
