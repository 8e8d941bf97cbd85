// GELU from a table, for AVX-512: half the arithmetic of the quotient in functions.h.
//
// GELU(x) = max(x, 0) - R(|x|) with R(a) = a/2 (1 - erf(a / sqrt 2)), which is small everywhere and zero far away. R is a
// polynomial of degree 4 in each of 32 pieces: piece i holds the a that are nearest to i / 5.75; beyond the last piece, at
// 5.478, R is less than 1.2e-7. The coefficients are those with the least absolute error in their piece: 1e-8 at most.
#pragma once

#include "functions.h"
#include "vector_avx512.h"

namespace sparse_accel {
namespace {

// By power of the distance to the middle of the piece (in pieces, -1/2 to 1/2), then by piece.
alignas(64) constexpr float GELU_PIECES[5][32] = {
    {
    -2.53538475e-11f, 0.0749507621f, 0.126603618f, 0.157004863f,
    0.169268414f, 0.167190462f, 0.154814005f, 0.136016309f,
    0.114179589f, 0.0919815227f, 0.0713146254f, 0.0533188991f,
    0.0384960659f, 0.0268674232f, 0.0181400292f, 0.0118549615f,
    0.00750244176f, 0.00459931744f, 0.00273205177f, 0.0015728306f,
    0.000877701736f, 0.000474836823f, 0.000249071221f, 0.000126684972f,
    6.2486004e-05f, 2.98899067e-05f, 1.38667328e-05f, 6.23952337e-06f,
    2.72316038e-06f, 1.15280011e-06f, 4.73375763e-07f, 1.88555816e-07f,
    },
    {
    0.0869565234f, 0.0630655959f, 0.0405857936f, 0.0207424071f,
    0.0044249706f, -0.00789988413f, -0.0162011255f, -0.0208269805f,
    -0.0223988593f, -0.0216824878f, -0.019463338f, -0.0164472666f,
    -0.0131977387f, -0.0101109287f, -0.00742231077f, -0.00523409573f,
    -0.00355218025f, -0.00232324214f, -0.00146587333f, -0.000893013435f,
    -0.00052561023f, -0.000299050385f, -0.000164546538f, -8.75898841e-05f,
    -4.51202905e-05f, -2.24985342e-05f, -1.08616678e-05f, -5.07786399e-06f,
    -2.29921329e-06f, -1.00844795e-06f, -4.28507605e-07f, -1.76417942e-07f,
    },
    {
    -0.0120663419f, -0.0117054516f, -0.0106709627f, -0.00909755565f,
    -0.00718089705f, -0.00514186453f, -0.0031893109f, -0.00148943241f,
    -0.000147317172f, 0.000797392742f, 0.00136241363f, 0.0016065035f,
    0.00161007745f, 0.00145735173f, 0.00122306705f, 0.000964972132f,
    0.000721648685f, 0.000514259737f, 0.00035047569f, 0.000229022597f,
    0.00014377397f, 8.68366478e-05f, 5.05181451e-05f, 2.83343579e-05f,
    1.53329656e-05f, 8.01039641e-06f, 4.04223147e-06f, 1.97113809e-06f,
    9.29187479e-07f, 4.23564245e-07f, 1.86760772e-07f, 7.96724322e-08f,
    },
    {
    1.69993271e-07f, 0.000237339627f, 0.000443287456f, 0.00059254287f,
    0.00067045039f, 0.000674956536f, 0.000615680532f, 0.000510616985f,
    0.000381558842f, 0.000249509263f, 0.000131155801f, 3.69745612e-05f,
    -2.89635009e-05f, -6.78826182e-05f, -8.44867463e-05f, -8.50420038e-05f,
    -7.57998423e-05f, -6.19788407e-05f, -4.73171094e-05f, -3.40724982e-05f,
    -2.32911225e-05f, -1.51798022e-05f, -9.461839e-06f, -5.65345908e-06f,
    -3.24371604e-06f, -1.78960613e-06f, -9.50463743e-07f, -4.86369345e-07f,
    -2.39977993e-07f, -1.14240812e-07f, -5.24982653e-08f, -2.32990729e-08f,
    },
    {
    6.05373498e-05f, 5.66466442e-05f, 4.52666936e-05f, 2.87497187e-05f,
    1.0123762e-05f, -7.46049409e-06f, -2.1417256e-05f, -3.01981345e-05f,
    -3.34526958e-05f, -3.1878124e-05f, -2.68670083e-05f, -2.00611375e-05f,
    -1.29662067e-05f, -6.69515657e-06f, -1.87142598e-06f, 1.33233857e-06f,
    3.07224786e-06f, 3.68460837e-06f, 3.55459065e-06f, 3.02629792e-06f,
    2.35740117e-06f, 1.71080444e-06f, 1.16882313e-06f, 7.56770703e-07f,
    4.66456441e-07f, 2.74597085e-07f, 1.54762802e-07f, 8.36620444e-08f,
    4.34426681e-08f, 2.16941096e-08f, 1.04285389e-08f, 4.82958695e-09f,
    },
};

template <>
[[gnu::always_inline]] inline __m512 gelu<Vector512>(__m512 x) {
  constexpr float PIECES = 5.75f, LAST = 31.49f / PIECES;
  // Adding it rounds to a whole number, which is then in the lowest bits: the index.
  const __m512 whole = Vector512::set(12582912.0f);
  const __m512 size = Vector512::at_most(_mm512_abs_ps(x), Vector512::set(LAST));
  const __m512 shifted = Vector512::multiply_add(size, Vector512::set(PIECES), whole);
  const __m512i piece = _mm512_castps_si512(shifted);
  const __m512 t = _mm512_fmsub_ps(size, Vector512::set(PIECES), Vector512::subtract(shifted, whole));
  const auto coefficient = [&](int power) {
    return _mm512_permutex2var_ps(_mm512_load_ps(GELU_PIECES[power]), piece, _mm512_load_ps(GELU_PIECES[power] + 16));
  };
  __m512 r = Vector512::multiply_add(coefficient(4), t, coefficient(3));
  r = Vector512::multiply_add(r, t, coefficient(2));
  r = Vector512::multiply_add(r, t, coefficient(1));
  r = Vector512::multiply_add(r, t, coefficient(0));
  return Vector512::subtract(Vector512::at_least(Vector512::zero(), x), r);  // no number stays none
}

}  // namespace
}  // namespace sparse_accel
