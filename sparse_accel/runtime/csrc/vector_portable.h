// A vector of one float or one int32: plain C++, for CPUs of any kind, and to test the others against.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"

namespace sparse_accel {
namespace {

struct Vector1 {
  static constexpr int WIDTH = 1;
  using F = float;
  using I = int32_t;

  static F set(float a) { return a; }
  static F zero() { return 0.0f; }
  static F load(const float* p) { return *p; }
  static F load_first(const float* p, int64_t n) { return n > 0 ? *p : 0.0f; }
  static void store(float* p, F a) { *p = a; }
  static void store_first(float* p, F a, int64_t n) {
    if (n > 0) *p = a;
  }
  // bfloat16: the upper half of a float, rounded to the nearest even.
  static F load_first(const Bfloat16* p, int64_t n) {
    const uint32_t bits = n > 0 ? uint32_t{p->bits} << 16 : 0;
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
  }
  static void store_first(Bfloat16* p, F a, int64_t n) {
    if (n <= 0) return;
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    p->bits = static_cast<uint16_t>(a == a ? (bits + (bits >> 16 & 1) + 0x7fff) >> 16 : 0x7fc0);
  }
  static F add(F a, F b) { return a + b; }
  static F subtract(F a, F b) { return a - b; }
  static F multiply(F a, F b) { return a * b; }
  static F divide(F a, F b) { return a / b; }
  static F multiply_add(F a, F b, F c) { return fmaf(a, b, c); }    // a * b + c
  static F minus_product(F c, F a, F b) { return fmaf(-a, b, c); }  // c - a * b
  static F at_least(F a, F b) { return a > b ? a : b; }             // b where one of them is no number
  static F at_most(F a, F b) { return a < b ? a : b; }
  static F rounded(F a) { return nearbyintf(a); }
  static F times_power_of_two(F a, F n) { return ldexpf(a, n == n ? static_cast<int>(n) : 0); }
  static F first_or(F a, int64_t n, F other) { return n > 0 ? a : other; }
  static F only_nan(F a) { return a == a ? 0.0f : a; }
  static F where_inside(F a, F below, F above, F value) { return a > below && a < above ? value : 0.0f; }
  static F where_kept(const uint8_t* kept, int64_t n, F a) { return n > 0 && *kept ? a : 0.0f; }
  static float sum(F a) { return a; }
  static float largest(F a) { return a; }
  static F inverse(F a) { return 1.0f / a; }

  // Longs, of which products take the lower halves.
  using L = uint64_t;
  static constexpr int LONGS = 1;
  static L no_longs() { return 0; }
  static L longs_from(uint64_t a) { return a; }
  static L upper(L a) { return a >> 32; }
  static L product_of_lower(L a, uint32_t b) { return (a & 0xffffffffu) * b; }
  static L differing(L a, L b, uint32_t c) { return a ^ b ^ c; }
  static void store_lower(uint16_t* p, L even, L odd) {
    const uint64_t words = (even & 0xffffffffu) | odd << 32;
    memcpy(p, &words, sizeof words);
  }
  // a where the number is at least `bound`, else 0.
  static F where_at_least(const uint16_t* p, int32_t bound, F a) { return *p >= bound ? a : 0.0f; }

  static I set_int(int32_t a) { return a; }
  static I load_int(const int32_t* p) { return *p; }
  static void store_int(int32_t* p, I a) { *p = a; }
  static I add_int(I a, I b) { return a + b; }
  static F to_float(I a) { return static_cast<float>(a); }
  static I to_int(F a) { return static_cast<int32_t>(nearbyintf(a)); }  // to the nearest even
  static void store_bytes(uint8_t* p, I a) { *p = static_cast<uint8_t>(a); }

  static I load_bytes(const uint8_t* p, int64_t n, bool is_signed) {
    if (n <= 0) return 0;
    return is_signed ? int32_t{static_cast<int8_t>(*p)} : int32_t{*p};
  }

  static void transpose(const float* from, int64_t, int64_t rows, float* to, int64_t) { *to = rows > 0 ? *from : 0.0f; }
};

}  // namespace
}  // namespace sparse_accel
