// Functions of vectors: quantize, exp, GELU, LayerNorm. Vector is the one of the file that includes this.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace sparse_accel {
namespace {

// x / scale, rounded to the nearest even, plus the zero point; see Quantization. Bit for bit what a division gives: the
// product with the inverse is off by a bit or two, and its remainder, which a fused multiply-add gives exactly, mends that
// (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
template <class V>
[[gnu::always_inline]] inline typename V::I quantized(typename V::F x, const Quantization& q) {
  const typename V::F scale = V::set(q.scale), inverse = V::set(q.inverse);
  x = V::at_most(V::at_least(x, V::set(q.smallest)), V::set(q.largest));
  const typename V::F near = V::multiply(x, inverse);
  const typename V::F quotient = V::multiply_add(V::minus_product(x, near, scale), inverse, near);
  return V::add_int(V::to_int(quotient), V::set_int(q.zero_point));
}

// e^x for x <= 0: 2^n times a polynomial on [-1/2, 1/2], relative error 2e-7. Below e^-87 it is about 1e-38. What is no
// number stays none.
template <class V>
[[gnu::always_inline]] inline typename V::F exp_of_negative(typename V::F x) {
  using F = typename V::F;
  x = V::multiply(V::at_least(V::set(-87.0f), x), V::set(1.44269504f));
  const F n = V::rounded(x);
  const F r = V::subtract(x, n);
  F p = V::multiply_add(V::set(1.3276472454890609e-3f), r, V::set(9.675541892647743e-3f));
  p = V::multiply_add(p, r, V::set(5.550713092088699e-2f));
  p = V::multiply_add(p, r, V::set(2.4022120237350464e-1f));
  p = V::multiply_add(p, r, V::set(6.931469440460205e-1f));
  p = V::multiply_add(p, r, V::set(1.0f));
  return V::times_power_of_two(p, n);
}

// x/2 (1 + erf(x / sqrt 2)). erf(z) = z P(z^2) / Q(z^2) up to |z| = 3.92, where it is 1 - 3e-8: absolute error 9e-7.
template <class V>
[[gnu::always_inline]] inline typename V::F gelu(typename V::F x) {
  using F = typename V::F;
  F z = V::multiply(x, V::set(0.70710678f));
  z = V::at_most(V::at_least(z, V::set(-3.92f)), V::set(3.92f));
  const F u = V::multiply(z, z);
  F p = V::multiply_add(V::set(2.0347288227640092e-6f), u, V::set(2.874807978514582e-4f));
  p = V::multiply_add(p, u, V::set(3.868378698825836e-3f));
  p = V::multiply_add(p, u, V::set(5.306063964962959e-2f));
  p = V::multiply_add(p, u, V::set(1.927652209997177e-1f));
  p = V::multiply_add(p, u, V::set(1.128378987312317f));
  F q = V::multiply_add(V::set(3.807065149885602e-5f), u, V::set(1.1881281388923526e-3f));
  q = V::multiply_add(q, u, V::set(1.5172397717833519e-2f));
  q = V::multiply_add(q, u, V::set(1.1508510261774063e-1f));
  q = V::multiply_add(q, u, V::set(5.041654109954834e-1f));
  q = V::multiply_add(q, u, V::set(1.0f));
  const F erf = V::multiply(V::multiply(z, p), V::inverse(q));
  const F half = V::multiply(x, V::set(0.5f));
  return V::multiply_add(half, erf, half);
}

// x/2 (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3). With e = exp(-2 |u|): (1 + tanh u) / 2 is 1 / (1 + e) where
// u > 0, and e / (1 + e) elsewhere.
template <class V>
[[gnu::always_inline]] inline typename V::F gelu_tanh(typename V::F x) {
  using F = typename V::F;
  const F cube = V::multiply(V::multiply(x, x), x);
  const F u = V::multiply(V::multiply_add(cube, V::set(0.044715f), x), V::set(0.79788456f));
  const F size = V::at_least(u, V::subtract(V::zero(), u));
  const F e = exp_of_negative<V>(V::multiply(size, V::set(-2.0f)));
  const F small = V::multiply(e, V::inverse(V::add(e, V::set(1.0f))));
  const F positive = V::multiply(V::at_least(x, V::zero()), V::subtract(V::set(1.0f), small));
  return V::multiply_add(V::at_most(x, V::zero()), small, positive);
}

template <class V>
[[gnu::always_inline]] inline typename V::F activated(typename V::F x, Activation activation) {
  if (activation == GELU) return gelu<V>(x);
  return activation == GELU_TANH ? gelu_tanh<V>(x) : x;
}

// LayerNorm of one row, in place: gamma (y - mean) / sqrt(variance + epsilon) + beta.
template <class V>
void normalize(float* y, const float* gamma, const float* beta, int64_t n, float epsilon) {
  using F = typename V::F;
  F sums = V::zero();
  for (int64_t i = 0; i < n; i += V::WIDTH) sums = V::add(sums, V::load_first(y + i, n - i));
  const float mean = V::sum(sums) / static_cast<float>(n);
  F squares = V::zero();
  for (int64_t i = 0; i < n; i += V::WIDTH) {
    const F away = V::first_or(V::subtract(V::load_first(y + i, n - i), V::set(mean)), n - i, V::zero());
    squares = V::multiply_add(away, away, squares);
  }
  const F factor = V::set(1.0f / sqrtf(V::sum(squares) / static_cast<float>(n) + epsilon));
  for (int64_t i = 0; i < n; i += V::WIDTH) {
    const F away = V::multiply(V::subtract(V::load_first(y + i, n - i), V::set(mean)), factor);
    V::store_first(y + i, V::multiply_add(away, V::load_first(gamma + i, n - i), V::load_first(beta + i, n - i)), n - i);
  }
}

}  // namespace
}  // namespace sparse_accel
