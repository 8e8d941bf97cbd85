// What operators ask of an instruction set: a table of functions, one table for each, and what they are called with.
//
// A kernel file must not share any inline function with the rest of the library: the linker keeps one copy, which might
// then be the one with instructions that another CPU does not have. So kernel files use no part of the C++ library, and
// everything that they include is in an unnamed namespace or holds data only, as this file does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed.h"

namespace sparse_accel {

// How floats become integers: round(x / scale) + zero point, to the nearest even, no less than lowest, no more than highest.
struct Quantization {
  float scale;
  float inverse;             // 1 / scale
  float smallest, largest;   // the floats of lowest and highest; what lies outside is one of them
  int32_t zero_point;
};

enum Activation : int32_t { NO_ACTIVATION = 0, GELU = 1, GELU_TANH = 2 };

// A packed weight, and what an operator makes of its sums: y = sum * scale + bias.
struct Matrix {
  Packed packed;
  Quantization input;
  // By position: minus zero point * row sum, with which a sum begins.
  const int32_t* start;
  // By output, padded: the scale of the input times the weight's, and the bias.
  const float* scale;
  const float* bias;
  // LANES16 in the order of rows: for 16 outputs, where they are among 32 sums (in bytes of int32: 16 indices), and from
  // which of two pairs of groups; see lanes16.h.
  const int32_t* from;
  const uint16_t* pair;
};

// Quantized activations of a tile, for the matrix that reads them:
//   LANES16         blocks of 8 tokens: [windows, one every 32 columns][8 tokens][64]. Each piece of 32 activations is there
//                   twice: as the first half of its own window, and as the second half of the one before.
//   all others      [tokens][stride]
// Bytes after the last column are read with weights of zero.
constexpr int BLOCK = 8;
inline constexpr int WINDOW_BYTES = BLOCK * 64;

constexpr int64_t row_stride(int64_t columns) { return (columns + 63) / 64 * 64 + 64; }
constexpr int64_t block_bytes(int64_t columns) { return (columns + 31) / 32 * WINDOW_BYTES; }
constexpr int64_t activation_bytes(int32_t encoding, int64_t columns, int64_t tokens) {
  return encoding == LANES16 ? (tokens + BLOCK - 1) / BLOCK * block_bytes(columns) : tokens * row_stride(columns);
}

// y = activation(Linear(x)), or LayerNorm(Linear(x) + residual) where gamma is given.
struct LinearTask {
  const Matrix* matrix;
  Activation activation;
  const float* x;
  float* y;
  const float* residual;
  const float* gamma;
  const float* beta;
  float epsilon;
};

// y = LayerNorm(second(activation(first(x))) + x)
struct FeedForwardTask {
  const Matrix* first;
  const Matrix* second;
  Activation activation;
  const float* x;
  float* y;
  const float* gamma;
  const float* beta;
  float epsilon;
};

// y = softmax(scale * q k^T + mask) v, for some queries of one head of one row of the batch.
struct AttentionTask {
  const float* q;      // [tokens] rows, each `stride_q` after the other
  const float* k;
  const float* v;
  const float* mask;   // null, or by query and key
  float* y;
  int64_t stride_q, stride_k, stride_v, stride_mask, stride_y;  // in floats; stride_mask 0: the same for all queries
  int64_t tokens, first_query, queries;
  int64_t head_size;
  float scale;
};

// y = the rows of an embedding table of 8-bit integers, dequantized; and where there is an output, quantized to it and
// dequantized again.
struct LookupTask {
  const uint8_t* table;  // [entries][size], int8 where is_signed
  bool is_signed;
  int64_t entries, size;
  float scale;
  int32_t zero_point;
  const Quantization* output;  // or null
  const int64_t* ids;  // from -entries to entries - 1: negative ones count from the end
  float* y;            // [ids][size]
};

// float or bfloat16.
template <class T>
struct Floats {
  T* data;
  bool bfloat16;
};

// For training. y = x where the mask keeps it, else 0; rounded to the grid of `scale`, and clipped to the integers from
// lowest to highest, which are those of the scheme less the zero point; gradients pass where x is not clipped.
struct FakeQuantizeTask {
  Floats<const void> x;
  const uint8_t* mask;          // null, or a byte for each number: 0 removes it
  Floats<const void> gradient;  // null: forwards; else y is the gradient of x, from this one of its result
  Floats<void> y;               // null: only the extremes are wanted
  bool rounds;              // false: masked alone
  float scale, inverse;
  float lowest, highest;
};

// For training. y = x * scale, or 0 where a random number of 16 bits is less than `dropped`.
struct DropoutTask {
  Floats<const void> x;
  Floats<void> y;
  uint64_t key;
  int32_t dropped;
  float scale;
};

// For training. Weights of attention: softmax of each row of scores, times `scale`, plus a mask; and the same after dropout.
// Rows are counted over texts, heads and queries.
struct AttentionWeightsTask {
  Floats<const void> scores;
  const float* mask;  // null, or [columns] for each text, head and query, at these strides in floats
  int64_t heads, queries;
  int64_t stride_text, stride_head, stride_query;
  int64_t columns;  // at most MOST_KEYS
  float scale;
  Floats<void> weights;
  DropoutTask dropout;  // of the weights
};
constexpr int64_t MOST_KEYS = 8192;  // a row of floats lies on the stack

// For training. The gradient of the scores from that of the dropped weights, in its place.
struct AttentionGradientTask {
  Floats<const void> weights;
  int64_t columns;
  float scale;
  DropoutTask dropout;  // of the gradient, in place
};

// The smallest and the largest number of a part, masked; both no number where it has one.
struct Extremes {
  float smallest, largest;
};

struct Kernels {
  const char* name;
  Encoding sparse, dense;
  // Whether dense matrices are worth replacing, and up to which density of slots a matrix is packed as sparse.
  bool takes_dense;
  double most_density;
  // `scratch`: aligned to 64 bytes; activation_bytes of the first matrix, then of the second, each rounded up to 64.
  void (*linear)(const LinearTask&, int64_t first, int64_t tokens, uint8_t* scratch);
  void (*feed_forward)(const FeedForwardTask&, int64_t first, int64_t tokens, uint8_t* scratch);
  // `scratch`: aligned; attention_floats(tokens, head_size) floats.
  void (*attention)(const AttentionTask&, float* scratch);
  // False: an id is outside of the table.
  bool (*lookup)(const LookupTask&, int64_t first, int64_t count);
  Extremes (*fake_quantize)(const FakeQuantizeTask&, int64_t first, int64_t count);
  void (*dropout)(const DropoutTask&, int64_t first, int64_t count);  // `first` is a multiple of 64
  // Rows; `first` is a multiple of 64.
  void (*attention_weights)(const AttentionWeightsTask&, int64_t first, int64_t count);
  void (*attention_gradient)(const AttentionGradientTask&, int64_t first, int64_t count);
  // The sums of quantized activations [tokens][columns], for tests: out [tokens][rows].
  void (*sums)(const Matrix&, const uint8_t* x, int64_t tokens, int32_t* out, uint8_t* scratch);
};

// K transposed, V padded, and the weights of a few queries.
constexpr int64_t padded_to_16(int64_t n) { return (n + 15) / 16 * 16; }
constexpr int64_t attention_floats(int64_t tokens, int64_t head_size) {
  return padded_to_16(head_size) * padded_to_16(tokens) * 2 + 8 * padded_to_16(tokens);
}

extern const Kernels avx512_vbmi_kernels, avx512_vnni_kernels, avx_vnni_kernels, avx2_kernels, portable_kernels;

}  // namespace sparse_accel
