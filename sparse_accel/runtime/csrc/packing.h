// Packing: a weight matrix as ONNX has it -> the block of packed.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "packed.h"

namespace sparse_accel {

// A weight: int8 [columns][rows], as MatMul's second input.
struct Weight {
  const int8_t* values;
  int64_t columns, rows;
};

struct PackingRequest {
  Encoding sparse;     // the encoding of sparse matrices
  Encoding dense;      // the encoding of all others; the same as `sparse`: there is no other
  double most_density; // with more slots than this fraction of the weights, the dense encoding is used
  bool ordered;        // leave rows in the order that packs best; the reader takes the results in that order
  // Column of the weight for each packed column, for the results of an ordered matrix: numbers >= weight.columns are
  // columns of zeros. Empty: the weight's own columns.
  std::vector<int32_t> input_order;
};

struct Block {
  std::vector<uint8_t> bytes;
  double density;  // slots stored, as a fraction of the weights
};

// Packs. Throws std::invalid_argument where the weight's shape or the order cannot be packed.
Block pack(const Weight& weight, const PackingRequest& request);

}  // namespace sparse_accel
