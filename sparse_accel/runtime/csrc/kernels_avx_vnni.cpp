// AVX2 with VNNI in its short form: Alder Lake and later.
#include <immintrin.h>

namespace sparse_accel {
namespace {

void add_products(__m256i& acc, __m256i activations, __m256i weights) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(activations), "x"(weights));
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

const Kernels avx_vnni_kernels = {
    "avx_vnni", LANES8, LANES8, false, 0.4, linear<Vector256, Integers>, feed_forward<Vector256, Integers>, attention<Vector256, 4>,
    lookup<Vector256>, fake_quantize<Vector256>, dropout<Vector256>, attention_weights<Vector256>, attention_gradient<Vector256>, sums<Vector256, Integers>};

}  // namespace sparse_accel
