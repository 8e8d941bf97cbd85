// AVX2 and FMA. Two neighbouring products are added in 16 bits: packing takes care that none overflows.
#include <immintrin.h>

namespace sparse_accel {
namespace {

void add_products(__m256i& acc, __m256i activations, __m256i weights) {
  const __m256i pairs = _mm256_maddubs_epi16(activations, weights);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace
}  // namespace sparse_accel

#include "attention.h"
#include "attention_weights.h"
#include "lanes8.h"
#include "dropout.h"
#include "fake_quantize.h"
#include "lookup.h"
#include "tile.h"

namespace sparse_accel {

const Kernels avx2_kernels = {
    "avx2", LANES8, LANES8, false, 0.5, linear<Vector256, Integers>, feed_forward<Vector256, Integers>, attention<Vector256, 4>,
    lookup<Vector256>, fake_quantize<Vector256>, dropout<Vector256>, attention_weights<Vector256>, attention_gradient<Vector256>, sums<Vector256, Integers>};

}  // namespace sparse_accel
