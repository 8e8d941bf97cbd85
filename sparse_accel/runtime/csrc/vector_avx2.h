// A vector of 8 floats or 8 int32: AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "bfloat16.h"

namespace sparse_accel {
namespace {

struct Vector256 {
  static constexpr int WIDTH = 8;
  using F = __m256;
  using I = __m256i;

  static I first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > 8 ? 8 : static_cast<int32_t>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static F set(float a) { return _mm256_set1_ps(a); }
  static F zero() { return _mm256_setzero_ps(); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_first(const float* p, int64_t n) { return n >= 8 ? load(p) : _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static void store_first(float* p, F a, int64_t n) { n >= 8 ? store(p, a) : _mm256_maskstore_ps(p, first(n), a); }
  // bfloat16: the upper half of a float, rounded to the nearest even.
  static F load_first(const Bfloat16* p, int64_t n) {
    __m128i halves = _mm_setzero_si128();
    if (n >= 8)
      halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    else
      __builtin_memcpy(&halves, p, static_cast<size_t>(n) * sizeof *p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static void store_first(Bfloat16* p, F a, int64_t n) {
    const I bits = _mm256_castps_si256(a);
    const I even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff))), 16);
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const I whole = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    if (n >= 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
    else
      __builtin_memcpy(p, &halves, static_cast<size_t>(n) * sizeof *p);
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F subtract(F a, F b) { return _mm256_sub_ps(a, b); }
  static F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
  static F divide(F a, F b) { return _mm256_div_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
  static F minus_product(F c, F a, F b) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
  // Like the instruction, and like onnxruntime: b where one of them is no number.
  static F at_least(F a, F b) { return _mm256_max_ps(a, b); }
  static F at_most(F a, F b) { return _mm256_min_ps(a, b); }
  static F rounded(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // n is a whole number from -126 to 127.
  static F times_power_of_two(F a, F n) {
    const I exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return multiply(a, _mm256_castsi256_ps(exponent));
  }
  static F first_or(F a, int64_t n, F other) { return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(first(n))); }
  // a where it is no number, else 0.
  static F only_nan(F a) { return _mm256_and_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q), a); }
  // `value` where a is between two bounds, else 0; also where it is no number.
  static F where_inside(F a, F below, F above, F value) {
    const F inside = _mm256_and_ps(_mm256_cmp_ps(a, below, _CMP_GT_OQ), _mm256_cmp_ps(a, above, _CMP_LT_OQ));
    return _mm256_and_ps(inside, value);
  }
  // a where the first n of these bytes are not 0, else 0.
  static F where_kept(const uint8_t* kept, int64_t n, F a) {
    const I bytes = load_bytes(kept, n, false);
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bytes, _mm256_setzero_si256())), a);
  }
  static float sum(F a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float largest(F a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static F inverse(F a) { return divide(set(1.0f), a); }

  // Longs, of which products take the lower halves.
  using L = __m256i;
  static constexpr int LONGS = 4;
  static L no_longs() { return _mm256_setzero_si256(); }
  static L longs_from(uint64_t a) {
    return _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(a)), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static L upper(L a) { return _mm256_srli_epi64(a, 32); }
  static L product_of_lower(L a, uint32_t b) { return _mm256_mul_epu32(a, _mm256_set1_epi64x(b)); }
  static L differing(L a, L b, uint32_t c) {  // a ^ b ^ c
    return _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_set1_epi64x(c));
  }
  static void store_lower(uint16_t* p, L even, L odd) {
    const L words = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
  }
  // a where the numbers are at least `bound`, else 0.
  static F where_at_least(const uint16_t* p, int32_t bound, F a) {
    const I numbers = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(bound), numbers)), a);
  }

  static I set_int(int32_t a) { return _mm256_set1_epi32(a); }
  static I load_int(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
  static void store_int(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<I*>(p), a); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static I to_int(F a) { return _mm256_cvtps_epi32(a); }  // to the nearest even
  // The integers, which are 0 to 255, as 8 bytes.
  static void store_bytes(uint8_t* p, I a) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  // The first n of 8 bytes, with or without a sign; the others are zero.
  static I load_bytes(const uint8_t* p, int64_t n, bool is_signed) {
    int64_t eight = 0;
    __builtin_memcpy(&eight, p, n >= 8 ? 8 : static_cast<size_t>(n));
    const __m128i bytes = _mm_cvtsi64_si128(eight);
    return is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
  }

  // to[column][row] = from[row][column], 8 x 8; rows from `rows` on are zero.
  static void transpose(const float* from, int64_t stride, int64_t rows, float* to, int64_t to_stride) {
    F r[8], s[8];
    for (int i = 0; i < 8; ++i) r[i] = i < rows ? load(from + i * stride) : zero();
    for (int i = 0; i < 4; ++i) {
      s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      r[4 * i] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      store(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
      store(to + (4 + i) * to_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
    }
  }
};

}  // namespace
}  // namespace sparse_accel
