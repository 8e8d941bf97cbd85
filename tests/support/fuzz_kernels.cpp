// Any bytes -> weights and activations for the functions of a table of kernels. They must compute what plain loops
// compute, and read and write nothing else, whatever a packed weight holds. With libFuzzer, or with kernels_driver.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "kernels_inputs.h"
#include "packing.h"

using namespace sparse_accel;

namespace {

constexpr float EPSILON = 1e-5f;
constexpr float LOWEST = std::numeric_limits<float>::lowest();

int64_t quantized(float x, const Quantization& q) {
  const int64_t lowest = std::lround(q.smallest / q.scale), highest = std::lround(q.largest / q.scale);
  if (!(x / q.scale > static_cast<float>(lowest))) return lowest;
  return x / q.scale >= static_cast<float>(highest) ? highest : std::lrint(x / q.scale);
}

double activated(double x, Activation activation) {
  if (activation == GELU) return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
  return activation == GELU_TANH ? x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) : x;
}

// Scales of weights, and biases.
struct Results {
  Exact<float> scale, bias;
  Results(Numbers& numbers, int64_t outputs)
      : scale(floats(numbers, numbers.one_in(3) ? 1 : outputs, 0.01f)), bias(floats(numbers, outputs, 3)) {}
};

// A matrix as an operator has it. Throws std::invalid_argument, as for an operator.
struct Layer {
  const Results& results;
  OwnedMatrix matrix;

  Layer(const Kernels& kernels, const Constant& weight, const Results& given, const Quantization& input, bool ordered,
        const std::vector<int32_t>& order)
      : results(given), matrix(kernels, weight, {given.scale.data(), ELEMENT_FLOAT, {given.scale.size()}},
                               {given.bias.data(), ELEMENT_FLOAT, {given.bias.size()}}, input, ordered, order) {}
  const Matrix& view() const { return matrix.view(); }
  const Header& header() const { return view().packed.header; }
  float scale_of(int64_t output) const {
    return view().input.scale * results.scale[results.scale.size() == 1 ? 0 : output];
  }
};

Constant as_constant(const Dense& weight) {
  return {weight.values.data(), ELEMENT_INT8, {weight.columns, weight.rows}};
}

// Packs, and damages what came out.
Exact<uint8_t> packed_of(const Kernels& kernels, Numbers& numbers, const Dense& weight, bool ordered,
                         const std::vector<int32_t>& order, bool damage) {
  const PackingRequest request{kernels.sparse, kernels.dense, kernels.most_density, ordered, order};
  const Block block = pack({weight.values.data(), weight.columns, weight.rows}, request);
  return exactly(damage ? damaged(numbers, block.bytes) : block.bytes);
}

// y of one token, before any LayerNorm, and how far another order of roundings may be from it.
void expected_linear(const Layer& layer, const Dense& weight, const float* x, Activation activation, double* y,
                     double* tolerance) {
  std::vector<int64_t> integers(weight.columns);
  for (int64_t k = 0; k < weight.columns; ++k) integers[k] = quantized(x[k], layer.view().input);
  for (int64_t row = 0; row < weight.rows; ++row) {
    int64_t sum = 0;
    for (int64_t k = 0; k < weight.columns; ++k) sum += integers[k] * weight.at(k, row);
    const double product = static_cast<double>(sum) * layer.scale_of(row);
    y[row] = activated(product + layer.results.bias[row], activation);
    tolerance[row] = 1e-6 + 4e-7 * (std::fabs(product) + std::fabs(layer.results.bias[row]));
  }
}

// Compares one token's result with the LayerNorm of y.
void check_norm(const std::vector<double>& y, const std::vector<double>& tolerance, const Exact<float>& gamma,
                const Exact<float>& beta, const float* found) {
  const auto n = static_cast<double>(y.size());
  double mean = 0, variance = 0, largest = 0;
  for (const double value : y) mean += value / n, largest = std::max(largest, std::fabs(value));
  for (const double value : y) variance += (value - mean) * (value - mean) / n;
  if (!(variance < 1e30)) return;  // no number, or one whose square may not be a float
  const double factor = 1 / std::sqrt(variance + EPSILON);
  const double error = *std::max_element(tolerance.begin(), tolerance.end()) + 1e-6 * largest;
  for (size_t i = 0; i < y.size(); ++i) {
    const double z = (y[i] - mean) * factor;
    const double bound = error * factor * (2 + std::fabs(z)) * std::fabs(gamma[i]) + 1e-5;
    EXPECT(std::fabs(found[i] - (z * gamma[i] + beta[i])) <= bound);
  }
}

int64_t scratch_bytes(const Matrix& matrix, int64_t tokens) {
  return (activation_bytes(matrix.packed.header.encoding, matrix.packed.header.columns, tokens) + 63) / 64 * 64;
}

// The kernels take tiles; the last one may have any number of tokens.
template <class Function>
void in_tiles(int64_t tokens, int64_t tile, Exact<uint8_t>& scratch, const Function& function) {
  for (int64_t first = 0; first < tokens; first += tile) {
    scratch.fill_with_garbage();
    function(first, std::min(tile, tokens - first));
  }
}

// Sums of integers, which do not depend on how the activations became integers.
void try_sums(const Kernels& kernels, Numbers& numbers, const Layer& layer, const Dense* weight) {
  const int64_t columns = layer.header().columns, rows = layer.header().rows;
  const int64_t tokens = numbers.from(0, columns > 1000 ? 3 : 40), tile = numbers.from(1, 24);
  Exact<uint8_t> scratch(scratch_bytes(layer.view(), tile), 64);
  Exact<uint8_t> x(tokens * columns);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(numbers.random() % 3 ? numbers.random() : 255);
  Exact<int32_t> found(tokens * rows);
  in_tiles(tokens, tile, scratch, [&](int64_t first, int64_t count) {
    kernels.sums(layer.view(), x.data() + first * columns, count, found.data() + first * rows, scratch.data());
  });
  const int64_t zero_point = layer.view().input.zero_point;
  for (int64_t token = 0; weight && token < tokens; ++token)
    for (int64_t row = 0; row < rows; ++row) {
      int64_t sum = 0;
      for (int64_t k = 0; k < columns; ++k) sum += (x[token * columns + k] - zero_point) * weight->at(k, row);
      EXPECT(found[token * rows + row] == sum);
    }
}

// Linear and LinearAddNorm.
void try_linear(const Kernels& kernels, Numbers& numbers, const Layer& layer, const Dense* weight) {
  const int64_t columns = layer.header().columns, rows = layer.header().rows;
  const int64_t tokens = numbers.from(0, columns > 1000 ? 3 : 40), tile = numbers.from(1, 24);
  Exact<uint8_t> scratch(scratch_bytes(layer.view(), tile), 64);
  const Exact<float> x = activations(numbers, tokens * columns, layer.view().input.scale);
  const Exact<float> residual = floats(numbers, tokens * rows, 5);
  const Exact<float> gamma = floats(numbers, rows, 2), beta = floats(numbers, rows, 1);
  const auto activation = static_cast<Activation>(numbers.from(0, 2));
  const bool norm = numbers.one_in(2);
  Exact<float> y(tokens * rows);
  LinearTask task{&layer.view(), activation, x.data(), y.data(), nullptr, nullptr, nullptr, 1e-5f};
  if (norm) task.residual = residual.data(), task.gamma = gamma.data(), task.beta = beta.data();
  in_tiles(tokens, tile, scratch,
           [&](int64_t first, int64_t count) { kernels.linear(task, first, count, scratch.data()); });
  std::vector<double> expected(rows), tolerance(rows);
  for (int64_t token = 0; weight && token < tokens; ++token) {
    expected_linear(layer, *weight, x.data() + token * columns, activation, expected.data(), tolerance.data());
    for (int64_t row = 0; row < rows; ++row) {
      if (norm) expected[row] += residual[token * rows + row];
      EXPECT(norm || std::fabs(y[token * rows + row] - expected[row]) <= tolerance[row]);
    }
    if (norm) check_norm(expected, tolerance, gamma, beta, y.data() + token * rows);
  }
}

// The first matrix is a packed one or, without it, made here. `damage`: of the second one.
void try_feed_forward(const Kernels& kernels, Numbers& numbers, const Constant* packed, int64_t outputs, bool damage) {
  const Dense weight_1 = weight_of(numbers, numbers.from(1, 100), packed ? outputs : numbers.from(1, 130));
  const Quantization input = quantization_of(numbers), middle = quantization_of(numbers);
  const Results of_first(numbers, weight_1.rows);
  const Layer first(kernels, packed ? *packed : as_constant(weight_1), of_first, input, true, {});
  const int64_t columns = first.header().columns;
  if (columns * weight_1.rows > 1000000) return;
  const Dense weight_2 = weight_of(numbers, weight_1.rows, columns);
  const Exact<uint8_t> bytes = packed_of(kernels, numbers, weight_2, false, first.matrix.order(), damage);
  const Results of_second(numbers, columns);
  const Layer second(kernels, {bytes.data(), ELEMENT_UINT8, {bytes.size()}}, of_second, middle, false, {});
  if (second.header().columns != first.view().packed.padded_rows() || second.header().rows != columns) return;

  const int64_t tokens = numbers.from(0, columns > 1000 ? 3 : 40), tile = numbers.from(1, 24);
  const Exact<float> x = activations(numbers, tokens * columns, input.scale);
  const Exact<float> gamma = floats(numbers, columns, 2), beta = floats(numbers, columns, 1);
  Exact<float> y(tokens * columns);
  Exact<uint8_t> scratch(scratch_bytes(first.view(), tile) + scratch_bytes(second.view(), tile), 64);
  const FeedForwardTask task{&first.view(), &second.view(), numbers.one_in(2) ? GELU : GELU_TANH, x.data(), y.data(),
                             gamma.data(), beta.data(), EPSILON};
  in_tiles(tokens, tile, scratch,
           [&](int64_t begin, int64_t count) { kernels.feed_forward(task, begin, count, scratch.data()); });
  if (packed || damage) return;
  // Hidden units as Linear gives them, which rounds alike: then their integers are equal.
  const Layer plain(kernels, as_constant(weight_1), of_first, input, false, {});
  Exact<float> hidden(weight_1.rows);
  LinearTask up{&plain.view(), task.activation, x.data(), hidden.data(), nullptr, nullptr, nullptr, 0};
  std::vector<double> expected(columns), tolerance(columns);
  Exact<uint8_t> own_scratch(scratch_bytes(plain.view(), 1), 64);
  for (int64_t token = 0; token < tokens; ++token, up.x += columns) {
    kernels.linear(up, 0, 1, own_scratch.data());
    expected_linear(second, weight_2, hidden.data(), NO_ACTIVATION, expected.data(), tolerance.data());
    for (int64_t i = 0; i < columns; ++i) expected[i] += up.x[i];
    check_norm(expected, tolerance, gamma, beta, y.data() + token * columns);
  }
}

void try_packed(const Kernels& kernels, Numbers& numbers, bool damage) {
  const bool ordered = numbers.one_in(3), large = numbers.one_in(64);
  const Dense weight = large ? weight_of(numbers, MOST_COLUMNS - numbers.from(0, 70), numbers.from(1, 3))
                             : weight_of(numbers, numbers.from(1, 200), numbers.from(1, 150));
  const Exact<uint8_t> bytes = packed_of(kernels, numbers, weight, ordered, {}, damage);
  const Constant packed{bytes.data(), ELEMENT_UINT8, {bytes.size()}};
  Header header{};
  std::memcpy(&header, bytes.data(), std::min(sizeof header, static_cast<size_t>(bytes.size())));
  const int64_t outputs = header.rows >= 1 && header.rows <= MOST_ROWS ? header.rows : 1;
  if (ordered && damage) return try_feed_forward(kernels, numbers, &packed, outputs, false);
  const Results results(numbers, outputs);
  const Layer layer(kernels, packed, results, quantization_of(numbers), ordered, {});
  try_sums(kernels, numbers, layer, damage ? nullptr : &weight);
  if (!ordered) try_linear(kernels, numbers, layer, damage ? nullptr : &weight);
}

// Bytes that need not be like any weight, but for what stands first.
void try_bytes(const Kernels& kernels, Numbers& numbers, const uint8_t* bytes, size_t size) {
  std::vector<uint8_t> block(bytes, bytes + size);
  if (size >= sizeof(Header)) {
    Header header{};
    std::memcpy(&header, bytes, sizeof header);
    header.magic = MAGIC, header.format = FORMAT, header.bytes = static_cast<int64_t>(size);
    header.encoding = numbers.one_in(2) ? kernels.sparse : kernels.dense;
    std::memcpy(block.data(), &header, sizeof header);
  }
  const Exact<uint8_t> exact = exactly(block);
  const OwnedMatrix matrix(kernels, exact.data(), exact.size(), 3);
}

// Rows of q, k or v: each `stride` after the other, and nothing behind the last one.
struct Rows {
  int64_t stride;
  Exact<float> values;
  Rows(Numbers& numbers, int64_t tokens, int64_t size, float scale)
      : stride(size + numbers.from(0, 40)), values(floats(numbers, (tokens - 1) * stride + size, scale)) {}
  float at(int64_t token, int64_t d) const { return values[token * stride + d]; }
};

void try_attention(const Kernels& kernels, Numbers& numbers) {
  static const int64_t sizes[] = {1, 8, 12, 16, 20, 32, 40, 64, 100};
  const int64_t tokens = numbers.from(1, 70), size = sizes[numbers.from(0, 8)];
  const Rows q(numbers, tokens, size, 3), k(numbers, tokens, size, 3), v(numbers, tokens, size, 2);
  const int64_t masks = numbers.from(0, 2);  // none, the same for all queries, one for each
  Exact<float> mask(masks == 0 ? 0 : masks == 1 ? tokens : tokens * tokens);
  const float masked[] = {0.0f, LOWEST, -INF, -3.0f};
  const int64_t shown = numbers.from(0, 100);
  for (int64_t i = 0; i < mask.size(); ++i)
    mask[i] = static_cast<int64_t>(numbers.random() % 100) < shown ? 0.0f : masked[numbers.random() % 4];
  const int64_t stride_y = size + numbers.from(0, 20);
  const int64_t first = numbers.from(0, tokens - 1), queries = numbers.from(1, tokens - first);
  Exact<float> y((tokens - 1) * stride_y + size);
  for (int64_t i = 0; i < y.size(); ++i) y[i] = 77;
  Exact<float> scratch(attention_floats(tokens, size), 64);
  scratch.fill_with_garbage();
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(size)));
  const AttentionTask task{q.values.data(), k.values.data(), v.values.data(), masks ? mask.data() : nullptr, y.data(),
                           q.stride, k.stride, v.stride, masks == 2 ? tokens : 0, stride_y, tokens, first, queries,
                           size, scale};
  kernels.attention(task, scratch.data());
  std::vector<double> weights(tokens);
  for (int64_t query = 0; query < tokens; ++query) {
    double largest = -INF, sum = 0;
    for (int64_t key = 0; key < tokens; ++key) {
      double score = 0;
      for (int64_t d = 0; d < size; ++d) score += static_cast<double>(q.at(query, d)) * k.at(key, d);
      // As float, because the lowest number swallows the scores.
      weights[key] = static_cast<float>(score * scale) + (masks ? mask[masks == 2 ? query * tokens + key : key] : 0.0f);
      largest = std::max(largest, weights[key]);
    }
    for (double& weight : weights) sum += weight = largest == -INF ? 1 : std::exp(weight - largest);
    for (int64_t d = 0; d < stride_y && query * stride_y + d < y.size(); ++d) {
      const float found = y[query * stride_y + d];
      double expected = 0;
      for (int64_t key = 0; d < size && key < tokens; ++key) expected += weights[key] / sum * v.at(key, d);
      const bool written = d < size && query >= first && query < first + queries;
      EXPECT(written ? std::fabs(found - expected) <= 1e-4 : found == 77);
    }
  }
}

void try_lookup(const Kernels& kernels, Numbers& numbers) {
  const int64_t entries = numbers.from(1, 40), size = numbers.from(1, 70), count = numbers.from(0, 20);
  const bool is_signed = numbers.one_in(2), outside = numbers.one_in(8);
  Exact<uint8_t> table(entries * size);
  for (int64_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint8_t>(numbers.random());
  Exact<int64_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = numbers.below(2 * entries) - entries;
  static const int64_t far[] = {INT64_MIN, INT64_MAX, 1 << 20, -(1 << 20)};
  if (count && outside) ids[numbers.below(count)] = numbers.one_in(2) ? entries : far[numbers.below(4)];
  const int32_t zero_point = static_cast<int32_t>(is_signed ? numbers.from(-128, 127) : numbers.from(0, 255));
  const Quantization output = quantization_of(numbers);
  const float scale = output.scale * numbers.uniform() * numbers.uniform() + 1e-6f;
  const bool rounded = numbers.one_in(2);
  Exact<float> y(count * size);
  const LookupTask task{table.data(), is_signed, entries, size, scale, zero_point, rounded ? &output : nullptr,
                        ids.data(), y.data()};
  EXPECT(kernels.lookup(task, 0, count) == !(count && outside));
  for (int64_t i = 0; i < y.size() && !outside; ++i) {
    const int64_t id = ids[i / size] < 0 ? ids[i / size] + entries : ids[i / size];
    const uint8_t byte = table[id * size + i % size];
    float expected = static_cast<float>((is_signed ? static_cast<int8_t>(byte) : byte) - zero_point) * scale;
    if (rounded) expected = static_cast<float>(quantized(expected, output)) * output.scale;
    EXPECT(y[i] == expected);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::vector<const Kernels*> all = kernels_of_this_cpu();
  Numbers numbers(bytes, size);
  const Kernels& kernels = *all[numbers.byte() % all.size()];
  const uint8_t kind = numbers.byte() % 9;
  try {
    if (kind == 0) try_attention(kernels, numbers);
    else if (kind < 3) try_packed(kernels, numbers, false);
    else if (kind < 5) try_packed(kernels, numbers, true);
    else if (kind == 5) try_feed_forward(kernels, numbers, nullptr, 0, false);
    else if (kind == 6) try_feed_forward(kernels, numbers, nullptr, 0, true);
    else if (kind == 7) try_lookup(kernels, numbers);
    else try_bytes(kernels, numbers, bytes + 2, size > 2 ? size - 2 : 0);
  } catch (const std::invalid_argument&) {
    EXPECT(kind == 3 || kind == 4 || kind == 6 || kind == 8);  // refused, as a damaged weight may be
  }
  return 0;
}
