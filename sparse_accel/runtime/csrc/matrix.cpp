#include "matrix.h"

#include <cmath>
#include <stdexcept>

#include "ort.h"

namespace sparse_accel {
namespace {

void require(bool holds, const char* otherwise) {
  if (!holds) throw std::invalid_argument(otherwise);
}

const float* floats(const Constant& constant) {
  require(constant.element_type == ELEMENT_FLOAT, "scales and biases must be float");
  return static_cast<const float*>(constant.data);
}

}  // namespace

Quantization quantization(float scale, int64_t zero_point, int64_t lowest, int64_t highest) {
  // So that neither 1 / scale nor 255 * scale is infinite.
  require(std::isfinite(scale) && scale > 1e-30f && scale < 1e30f, "the scale of an input must be between 1e-30 and 1e30");
  require(0 <= lowest && lowest < highest && highest <= 255, "the lowest and the highest integer must be within 0 to 255");
  require(0 <= zero_point && zero_point <= 255, "a zero point must be within 0 to 255");
  const auto float_of = [&](int64_t integer) { return static_cast<float>(integer - zero_point) * scale; };
  return {scale, 1.0f / scale, float_of(lowest), float_of(highest), static_cast<int32_t>(zero_point)};
}

OwnedMatrix::OwnedMatrix(const Kernels& kernels, const Constant& weight, const Constant& scale, const Constant& bias,
                         const Quantization& input, bool ordered, const std::vector<int32_t>& input_order) {
  view_.input = input;
  if (weight.element_type == ELEMENT_UINT8 && weight.shape.size() == 1) {
    read(kernels, static_cast<const uint8_t*>(weight.data), weight.shape[0]);
    require(view_.packed.header.ordered == ordered || !view_.packed.sparse(), "packed weight: for another place in the graph");
  } else {
    require(weight.element_type == ELEMENT_INT8 && weight.shape.size() == 2, "a weight must be int8 [K, N], or packed");
    const Weight unpacked{static_cast<const int8_t*>(weight.data), weight.shape[0], weight.shape[1]};
    block_ = pack(unpacked, {kernels.sparse, kernels.dense, kernels.most_density, ordered, input_order}).bytes;
    read(kernels, block_.data(), static_cast<int64_t>(block_.size()));
  }
  set_start(input.zero_point);
  set_results(scale, bias);
  set_order();
}

OwnedMatrix::OwnedMatrix(const Kernels& kernels, const uint8_t* block, int64_t size, int32_t zero_point) {
  view_.input = quantization(1.0f, zero_point, 0, 255);
  read(kernels, block, size);
  set_start(zero_point);
  set_order();
}

void OwnedMatrix::read(const Kernels& kernels, const uint8_t* block, int64_t size) {
  if (const char* wrong = read_packed(block, size, &view_.packed)) throw std::invalid_argument(wrong);
  const int32_t encoding = view_.packed.header.encoding;
  require(encoding == kernels.sparse || encoding == kernels.dense, "packed weight: for another instruction set");
}

void OwnedMatrix::set_start(int32_t zero_point) {
  const Packed& packed = view_.packed;
  start_.resize(packed.padded_rows());
  for (size_t position = 0; position < start_.size(); ++position)
    // Unsigned, so that a damaged sum wraps around.
    start_[position] = static_cast<int32_t>(0u - static_cast<uint32_t>(zero_point) *
                                                     static_cast<uint32_t>(packed.row_sums[position]));
  view_.start = start_.data();
}

void OwnedMatrix::set_results(const Constant& scale, const Constant& bias) {
  const int64_t rows = view_.packed.header.rows;
  require(scale.size() == 1 || scale.size() == rows, "a weight's scale must be one number, or one for each output");
  require(bias.size() == rows, "a bias must have a number for each output");
  const float* scales = floats(scale);
  const float* biases = floats(bias);
  const int64_t padded = view_.packed.padded_rows();
  scale_.assign(padded, 0.0f);
  bias_.assign(padded, 0.0f);
  for (int64_t output = 0; output < padded; ++output) {
    const int64_t row = view_.packed.header.ordered ? view_.packed.order[output] : output;
    if (row >= rows) continue;
    scale_[output] = view_.input.scale * scales[scale.size() == 1 ? 0 : row];
    bias_[output] = biases[row];
  }
  view_.scale = scale_.data();
  view_.bias = bias_.data();
}

// Where each of 64 rows is among the 64 sums of its four groups.
void OwnedMatrix::set_order() {
  const Packed& packed = view_.packed;
  if (packed.header.encoding != LANES16 || packed.header.ordered) return;
  from_.assign(packed.padded_rows(), 0);
  pair_.assign(packed.header.groups, 0);
  for (int32_t position = 0; position < packed.padded_rows(); ++position) {
    const int32_t row = packed.order[position];
    from_[row] = position % 32;
    if (position % SORTED >= 32) pair_[row / 16] |= static_cast<uint16_t>(1u << row % 16);
  }
  view_.from = from_.data();
  view_.pair = pair_.data();
}

std::vector<int32_t> OwnedMatrix::order() const {
  const Packed& packed = view_.packed;
  return {packed.order, packed.order + packed.padded_rows()};
}

}  // namespace sparse_accel
