// A matrix that an operator owns: the packed weight, and all that is made of scales, zero points and biases.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"
#include "packing.h"

namespace sparse_accel {

// The product of the first `axes` axes. Where one of them is 0, the others may be of any size, and are not multiplied.
inline int64_t size_of(const std::vector<int64_t>& shape, size_t axes) {
  int64_t n = 1;
  for (size_t axis = 0; axis < axes; ++axis)
    if (shape[axis] == 0) return 0;
  for (size_t axis = 0; axis < axes; ++axis) n *= shape[axis];
  return n;
}

// A weight, scale or bias as the graph has it.
struct Constant {
  const void* data;
  int element_type;
  std::vector<int64_t> shape;
  int64_t size() const { return size_of(shape, shape.size()); }
};

class OwnedMatrix {
 public:
  // `weight`: uint8 [bytes], packed for `kernels` and used in place; or int8 [K, N], which is packed here.
  // `input_order`: see PackingRequest. Throws std::invalid_argument.
  OwnedMatrix(const Kernels& kernels, const Constant& weight, const Constant& scale, const Constant& bias,
              const Quantization& input, bool ordered, const std::vector<int32_t>& input_order);
  // For sums alone: without scale and bias.
  OwnedMatrix(const Kernels& kernels, const uint8_t* block, int64_t size, int32_t zero_point);
  // `view` points into the other members.
  OwnedMatrix(const OwnedMatrix&) = delete;
  OwnedMatrix& operator=(const OwnedMatrix&) = delete;

  const Matrix& view() const { return view_; }
  std::vector<int32_t> order() const;

 private:
  void read(const Kernels& kernels, const uint8_t* block, int64_t size);
  void set_start(int32_t zero_point);
  void set_results(const Constant& scale, const Constant& bias);
  void set_order();

  Matrix view_{};
  std::vector<uint8_t> block_;  // empty if the graph has it
  std::vector<int32_t> start_, from_;
  std::vector<uint16_t> pair_;
  std::vector<float> scale_, bias_;
};

// Throws std::invalid_argument unless the numbers describe uint8 integers.
Quantization quantization(float scale, int64_t zero_point, int64_t lowest, int64_t highest);

}  // namespace sparse_accel
