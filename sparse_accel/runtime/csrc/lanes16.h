// Integer sums with AVX-512 VNNI and VBMI: sparse matrices as LANES16, others as DENSE16.
#pragma once

#include "kernels.h"
#include "vector_avx512.h"

namespace sparse_accel {
namespace {

#define SPARSE_ACCEL_UNROLL _Pragma("GCC unroll 32")

struct Integers {
  using Vector = Vector512;
  using I = Vector::I;
  static constexpr int64_t TWO_BLOCKS = 8192;  // bytes of a block

  // Where one token's quantized activations go; `put` takes 16 of them, from a multiple of 16 on.
  struct Row {
    uint8_t* begin;
    bool windows;
    Row(const Matrix& matrix, uint8_t* activations, int64_t token) {
      const Header& header = matrix.packed.header;
      windows = header.encoding == LANES16;
      begin = windows ? activations + token / BLOCK * block_bytes(header.columns) + token % BLOCK * 64
                      : activations + token * row_stride(header.columns);
    }
    void put(int64_t k, I integers) {
      if (!windows) return Vector::store_bytes(begin + k, integers);
      uint8_t* own = begin + k / 32 * WINDOW_BYTES + k % 32;
      const __m128i bytes = _mm512_cvtepi32_epi8(integers);
      _mm_store_si128(reinterpret_cast<__m128i*>(own), bytes);
      if (k >= 32) _mm_store_si128(reinterpret_cast<__m128i*>(own - WINDOW_BYTES + 32), bytes);
    }
  };

  // acc += the 4 products of each lane. As assembly, because gcc 12 copies the accumulators around the intrinsic.
  static void add_products(I& acc, I activations, I weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(activations), "v"(weights));
  }

  static I shuffled(const uint8_t* window, I index) { return _mm512_permutexvar_epi8(index, _mm512_load_si512(window)); }

  // The sums of one group for TOKENS tokens of a block, or of two, to out[token][16]. Apart from what is done with the sums,
  // so that they stay in registers.
  template <int TOKENS>
  static __attribute__((noinline)) void group(const uint8_t* set, const uint16_t* window, const uint16_t* end,
                                              const uint8_t* activations, int64_t next_block, const int32_t* start,
                                              int32_t* out) {
    I acc[TOKENS];
    SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) acc[t] = Vector::load_int(start);
    for (; window < end; ++window, set += 128) {
      const uint8_t* from = activations + int64_t{*window} * WINDOW_BYTES;
      const I index = _mm512_loadu_si512(set), weights = _mm512_loadu_si512(set + 64);
      SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t)
        add_products(acc[t], shuffled(from + t / BLOCK * next_block + t % BLOCK * 64, index), weights);
    }
    SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) Vector::store_int(out + 16 * t, acc[t]);
  }

  // TOKENS tokens of a block times all groups, from token `first` on.
  template <int TOKENS, class Out>
  static void block(const Matrix& matrix, const uint8_t* activations, int64_t first, const Out& out) {
    const Packed& packed = matrix.packed;
    alignas(64) int32_t sums[4][16 * TOKENS];
    const bool in_order = !packed.header.ordered;
    const int64_t next_block = block_bytes(packed.header.columns);
    for (int64_t g = 0; g < packed.header.groups; g += 4) {
      const int64_t groups = packed.header.groups - g < 4 ? packed.header.groups - g : 4;
      for (int64_t i = 0; i < groups; ++i) {
        const uint32_t begin = packed.begin[g + i], end = packed.begin[g + i + 1];
        group<TOKENS>(packed.weights + int64_t{begin} * 128, packed.windows + begin, packed.windows + end, activations,
                      next_block, matrix.start + (g + i) * 16, sums[i]);
      }
      for (int64_t i = 0; i < groups; ++i) {
        if (!in_order) {
          for (int t = 0; t < TOKENS; ++t) out(first + t, (g + i) * 16, Vector::load_int(sums[i] + 16 * t));
          continue;
        }
        // Each output is one of 64 sums: by its index among the first or the last 32.
        const I from = Vector::load_int(matrix.from + (g + i) * 16);
        const __mmask16 last = matrix.pair[g + i];
        for (int t = 0; t < TOKENS; ++t) {
          const I low = _mm512_permutex2var_epi32(Vector::load_int(sums[0] + 16 * t), from, Vector::load_int(sums[1] + 16 * t));
          const I high = _mm512_permutex2var_epi32(Vector::load_int(sums[2] + 16 * t), from, Vector::load_int(sums[3] + 16 * t));
          out(first + t, (g + i) * 16, _mm512_mask_mov_epi32(low, last, high));
        }
      }
    }
  }

  template <class Out>
  static void sparse(const Matrix& matrix, const uint8_t* activations, int64_t tokens, const Out& out) {
    const int64_t bytes = block_bytes(matrix.packed.header.columns);
    int64_t first = 0;
    // Two blocks share the loads of a set and the end of its loop, as long as both stay in the cache nearest to the core.
    for (; bytes <= TWO_BLOCKS && tokens - first >= 2 * BLOCK; first += 2 * BLOCK, activations += 2 * bytes)
      block<2 * BLOCK>(matrix, activations, first, out);
    for (; first < tokens; first += BLOCK, activations += bytes) {
      const int64_t count = tokens - first;
      if (count >= BLOCK) {
        block<BLOCK>(matrix, activations, first, out);
        continue;
      }
      int64_t t = 0;
      if (count - t >= 4) block<4>(matrix, activations + t * 64, first + t, out), t += 4;
      if (count - t >= 2) block<2>(matrix, activations + t * 64, first + t, out), t += 2;
      if (count - t >= 1) block<1>(matrix, activations + t * 64, first + t, out);
    }
  }

  // GROUPS groups of a dense matrix for TOKENS tokens, to out[group][token][16]: GROUPS x TOKENS accumulators.
  template <int GROUPS, int TOKENS>
  static __attribute__((noinline)) void panel(const uint8_t* weights, int64_t fours, const uint8_t* activations,
                                              int64_t stride, const int32_t* start, int32_t* out) {
    I acc[GROUPS][TOKENS];
    SPARSE_ACCEL_UNROLL for (int g = 0; g < GROUPS; ++g)
      SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) acc[g][t] = Vector::load_int(start + 16 * g);
    for (int64_t k = 0; k < fours; ++k) {
      I w[GROUPS];
      SPARSE_ACCEL_UNROLL for (int g = 0; g < GROUPS; ++g) w[g] = _mm512_loadu_si512(weights + (g * fours + k) * 64);
      SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) {
        int32_t four;
        __builtin_memcpy(&four, activations + t * stride + 4 * k, 4);
        const I a = _mm512_set1_epi32(four);
        SPARSE_ACCEL_UNROLL for (int g = 0; g < GROUPS; ++g) add_products(acc[g][t], a, w[g]);
      }
    }
    SPARSE_ACCEL_UNROLL for (int g = 0; g < GROUPS; ++g)
      SPARSE_ACCEL_UNROLL for (int t = 0; t < TOKENS; ++t) Vector::store_int(out + (g * TOKENS + t) * 16, acc[g][t]);
  }

  template <int GROUPS, int TOKENS, class Out>
  static void dense_tokens(const Matrix& matrix, const uint8_t* activations, int64_t g, int64_t first, const Out& out) {
    alignas(64) int32_t sums[GROUPS * TOKENS * 16];
    const int64_t fours = (matrix.packed.header.columns + 3) / 4, stride = row_stride(matrix.packed.header.columns);
    panel<GROUPS, TOKENS>(matrix.packed.weights + g * fours * 64, fours, activations + first * stride, stride,
                          matrix.start + 16 * g, sums);
    for (int i = 0; i < GROUPS; ++i)
      for (int t = 0; t < TOKENS; ++t) out(first + t, (g + i) * 16, Vector::load_int(sums + (i * TOKENS + t) * 16));
  }

  template <int GROUPS, class Out>
  static void dense_groups(const Matrix& matrix, const uint8_t* activations, int64_t tokens, int64_t g, const Out& out) {
    int64_t t = 0;
    for (; tokens - t >= 6; t += 6) dense_tokens<GROUPS, 6>(matrix, activations, g, t, out);
    for (; tokens - t >= 2; t += 2) dense_tokens<GROUPS, 2>(matrix, activations, g, t, out);
    for (; tokens - t >= 1; t += 1) dense_tokens<GROUPS, 1>(matrix, activations, g, t, out);
  }

  // Calls out(token, output, sums of 16 outputs from there on) for all tokens and outputs.
  template <class Out>
  static void multiply(const Matrix& matrix, const uint8_t* activations, int64_t tokens, const Out& out) {
    if (matrix.packed.header.encoding == LANES16) return sparse(matrix, activations, tokens, out);
    int64_t g = 0;
    for (; matrix.packed.header.groups - g >= 4; g += 4) dense_groups<4>(matrix, activations, tokens, g, out);
    for (; matrix.packed.header.groups - g >= 1; g += 1) dense_groups<1>(matrix, activations, tokens, g, out);
  }
};

#undef SPARSE_ACCEL_UNROLL

}  // namespace
}  // namespace sparse_accel
