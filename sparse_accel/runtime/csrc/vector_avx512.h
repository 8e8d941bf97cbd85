// A vector of 16 floats or 16 int32: AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "bfloat16.h"

namespace sparse_accel {
namespace {

struct Vector512 {
  static constexpr int WIDTH = 16;
  using F = __m512;
  using I = __m512i;

  static __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

  static F set(float a) { return _mm512_set1_ps(a); }
  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  // Most vectors are whole: a branch that is foreseen costs less than making a mask.
  static F load_first(const float* p, int64_t n) { return n >= 16 ? load(p) : _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static void store_first(float* p, F a, int64_t n) { n >= 16 ? store(p, a) : _mm512_mask_storeu_ps(p, first(n), a); }
  // bfloat16: the upper half of a float, rounded to the nearest even.
  static F load_first(const Bfloat16* p, int64_t n) {
    const __m256i halves = n >= 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(first(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static void store_first(Bfloat16* p, F a, int64_t n) {
    const I bits = _mm512_castps_si512(a);
    const I even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
    const I halves = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm512_mask_cvtepi32_storeu_epi16(p, first(n), halves);
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
  static F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
  static F divide(F a, F b) { return _mm512_div_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }        // a * b + c
  static F minus_product(F c, F a, F b) { return _mm512_fnmadd_ps(a, b, c); }      // c - a * b
  // Like the instruction, and like onnxruntime: b where one of them is no number.
  static F at_least(F a, F b) { return _mm512_max_ps(a, b); }
  static F at_most(F a, F b) { return _mm512_min_ps(a, b); }
  static F rounded(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F times_power_of_two(F a, F n) { return _mm512_scalef_ps(a, n); }
  static F first_or(F a, int64_t n, F other) { return n >= 16 ? a : _mm512_mask_mov_ps(other, first(n), a); }
  // a where it is no number, else 0.
  static F only_nan(F a) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a); }
  // `value` where a is between two bounds, else 0; also where it is no number.
  static F where_inside(F a, F below, F above, F value) {
    const __mmask16 over = _mm512_cmp_ps_mask(a, below, _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(over, a, above, _CMP_LT_OQ), value);
  }
  // a where the first n of these bytes are not 0, else 0.
  static F where_kept(const uint8_t* kept, int64_t n, F a) {
    const __m128i bytes = n >= 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(kept)) : _mm_maskz_loadu_epi8(first(n), kept);
    return _mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), a);
  }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }
  // 1 / a, to the last bit or two.
  static F inverse(F a) {
    const F guess = _mm512_rcp14_ps(a);
    return multiply(guess, minus_product(set(2.0f), a, guess));
  }

  // Longs, of which products take the lower halves.
  using L = __m512i;
  static constexpr int LONGS = 8;
  static L no_longs() { return _mm512_setzero_si512(); }
  static L longs_from(uint64_t a) {
    return _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(a)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static L upper(L a) { return _mm512_srli_epi64(a, 32); }
  static L product_of_lower(L a, uint32_t b) { return _mm512_mul_epu32(a, _mm512_set1_epi64(b)); }
  static L differing(L a, L b, uint32_t c) { return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi64(c), 0x96); }  // a ^ b ^ c
  static void store_lower(uint16_t* p, L even, L odd) {
    _mm512_storeu_si512(p, _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32)));
  }
  // a where the numbers are at least `bound`, else 0.
  static F where_at_least(const uint16_t* p, int32_t bound, F a) {
    const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_maskz_mov_ps(_mm256_cmpge_epu16_mask(numbers, _mm256_set1_epi16(static_cast<int16_t>(bound))), a);
  }

  static I set_int(int32_t a) { return _mm512_set1_epi32(a); }
  static I load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_int(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I to_int(F a) { return _mm512_cvtps_epi32(a); }  // to the nearest even
  // The integers, which are 0 to 255, as 16 bytes.
  static void store_bytes(uint8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }

  // The first n of 16 bytes, with or without a sign; the others are zero.
  static I load_bytes(const uint8_t* p, int64_t n, bool is_signed) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
    return is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
  }

  // to[column][row] = from[row][column], 16 x 16; rows from `rows` on are zero.
  static void transpose(const float* from, int64_t stride, int64_t rows, float* to, int64_t to_stride) {
    I r[16], s[16];
    for (int i = 0; i < 16; ++i) r[i] = i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
    for (int i = 0; i < 8; ++i) {
      s[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      s[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_unpacklo_epi64(s[4 * i], s[4 * i + 2]);
      r[4 * i + 1] = _mm512_unpackhi_epi64(s[4 * i], s[4 * i + 2]);
      r[4 * i + 2] = _mm512_unpacklo_epi64(s[4 * i + 1], s[4 * i + 3]);
      r[4 * i + 3] = _mm512_unpackhi_epi64(s[4 * i + 1], s[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      s[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
      s[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
      s[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
      s[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_i32x4(s[i], s[8 + i], 0x88);
      r[8 + i] = _mm512_shuffle_i32x4(s[i], s[8 + i], 0xdd);
      r[4 + i] = _mm512_shuffle_i32x4(s[4 + i], s[12 + i], 0x88);
      r[12 + i] = _mm512_shuffle_i32x4(s[4 + i], s[12 + i], 0xdd);
    }
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_stride, r[i]);
  }
};

}  // namespace
}  // namespace sparse_accel
