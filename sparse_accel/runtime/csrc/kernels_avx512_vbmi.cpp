// AVX-512 with VNNI and VBMI: Ice Lake and later, Zen 4 and later.
#include "attention.h"
#include "attention_weights.h"
#include "gelu_table.h"
#include "lanes16.h"
#include "dropout.h"
#include "fake_quantize.h"
#include "lookup.h"
#include "tile.h"

namespace sparse_accel {

const Kernels avx512_vbmi_kernels = {
    "avx512_vbmi", LANES16, DENSE16, true, 0.6, linear<Vector512, Integers>, feed_forward<Vector512, Integers>,
    attention<Vector512, 8>, lookup<Vector512>, fake_quantize<Vector512>, dropout<Vector512>, attention_weights<Vector512>, attention_gradient<Vector512>, sums<Vector512, Integers>};

}  // namespace sparse_accel
