// AVX-512 VNNI without VBMI, Cascade Lake. Only VBMI can shuffle 64 bytes at once, so
// Linears use registers of 256 bits; attention uses all 512.
#include <immintrin.h>

namespace sparse_accel {
namespace {

void add_products(__m256i& acc, __m256i activations, __m256i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(activations), "v"(weights));
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
#include "vector_avx512.h"

namespace sparse_accel {

const Kernels avx512_vnni_kernels = {
    "avx512_vnni", LANES8, LANES8, false, 0.4, linear<Vector256, Integers>, feed_forward<Vector256, Integers>, attention<Vector512, 8>,
    lookup<Vector256>, fake_quantize<Vector512>, dropout<Vector512>, attention_weights<Vector512>, attention_gradient<Vector512>, sums<Vector256, Integers>};

}  // namespace sparse_accel
