// For fuzz_kernels.cpp: weights, activations, and packed weights that are damaged.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels_memory.h"
#include "matrix.h"
#include "ort.h"
#include "packed.h"

namespace sparse_accel {
namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

struct Dense {
  int64_t columns, rows;
  std::vector<int8_t> values;  // [columns][rows]
  int64_t at(int64_t column, int64_t row) const { return values[column * rows + row]; }
};

// Random places, whole blocks, or one row among empty ones; the extremes now and then.
Dense weight_of(Numbers& numbers, int64_t columns, int64_t rows) {
  Dense weight{columns, rows, std::vector<int8_t>(static_cast<size_t>(columns * rows), 0)};
  const int64_t density = numbers.from(0, 100), pattern = numbers.from(0, 3), block = numbers.from(1, 32);
  const bool extremes = numbers.one_in(3);
  const int64_t dense_row = numbers.below(rows);
  const uint64_t salt = numbers.random();
  const auto of_block = [&](int64_t column, int64_t row) {  // the same number in a whole block
    return (salt ^ (static_cast<uint64_t>(column / 4 * 1000003 + row / block) * 2654435761u)) >> 7;
  };
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t row = 0; row < rows; ++row) {
      const uint64_t drawn = pattern == 1 ? of_block(column, row) : numbers.random();
      if (pattern == 2 ? row != dense_row : static_cast<int64_t>(drawn % 100) >= density) continue;
      const auto value = static_cast<int8_t>(numbers.random());
      weight.values[column * rows + row] = extremes ? static_cast<int8_t>(value < 0 ? -128 : 127) : value;
    }
  return weight;
}

// Floats for `size` outputs.
Exact<float> floats(Numbers& numbers, int64_t size, float scale) {
  Exact<float> made(size);
  for (int64_t i = 0; i < size; ++i) made[i] = numbers.uniform() * scale;
  return made;
}

// Activations, of which some are at a tie, far away, or no number.
Exact<float> activations(Numbers& numbers, int64_t size, float scale) {
  Exact<float> made(size);
  const bool special = numbers.one_in(4);
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t drawn = numbers.random() % 64;
    made[i] = numbers.uniform() * 200 * scale;
    if (drawn < 16) made[i] = (static_cast<float>(drawn) - 7.5f) * scale;
    if (special && drawn >= 60) made[i] = drawn == 60 ? INF : drawn == 61 ? -INF : drawn == 62 ? NAN : 1e30f;
  }
  return made;
}

Quantization quantization_of(Numbers& numbers) {
  static const float scales[] = {1.0f, 0.0078125f, 0.1f, 0.037215468f, 1e-6f, 3000.0f};
  const int64_t lowest = numbers.one_in(4) ? numbers.from(0, 100) : 0;
  return quantization(scales[numbers.from(0, 5)], numbers.from(0, 255), lowest, numbers.one_in(4) ? lowest + 127 : 255);
}

// At an address that is a multiple of 8 and of nothing more, with nothing behind it.
Exact<uint8_t> exactly(const std::vector<uint8_t>& block) {
  Exact<uint8_t> bytes(static_cast<int64_t>(block.size()), 8);
  if (!block.empty()) std::memcpy(bytes.data(), block.data(), block.size());
  return bytes;
}

// Changes one number of a part: by a little, or to an extreme.
template <class T>
void change(Numbers& numbers, uint8_t* part, int64_t count) {
  uint8_t* at = part + numbers.below(count) * static_cast<int64_t>(sizeof(T));
  static const int64_t words[] = {0, -1, INT32_MAX, INT32_MIN, 16, 64, 65535, 1 << 20};
  T value;
  std::memcpy(&value, at, sizeof value);
  const int64_t by = numbers.from(-4, 12);
  value = static_cast<T>(by <= 4 ? static_cast<int64_t>(value) + by : words[by - 5]);
  std::memcpy(at, &value, sizeof value);
}

// A block with some numbers changed, too short or too long. Its header mostly says how long it is.
std::vector<uint8_t> damaged(Numbers& numbers, std::vector<uint8_t> block) {
  Packed packed;
  const Exact<uint8_t> copy = exactly(block);
  EXPECT(!read_packed(copy.data(), copy.size(), &packed));
  const auto part = [&](const void* begin) {
    return block.data() + (static_cast<const uint8_t*>(begin) - copy.data());
  };
  for (int64_t edits = numbers.from(0, 4); edits > 0; --edits) {
    const int64_t kind = numbers.from(0, packed.sparse() && packed.header.sets ? 6 : 3);
    if (kind == 0) change<int32_t>(numbers, block.data(), sizeof(Header) / 4);
    if (kind == 1) change<int32_t>(numbers, part(packed.row_sums), packed.padded_rows());
    if (kind == 2) change<int32_t>(numbers, part(packed.order), packed.padded_rows());
    if (kind == 3) block[numbers.below(copy.size())] = numbers.byte();
    if (kind == 4) change<uint32_t>(numbers, part(packed.begin), packed.header.groups + 1);
    if (kind == 5) change<uint16_t>(numbers, part(packed.windows), packed.header.sets);
    if (kind == 6) change<uint8_t>(numbers, part(packed.weights), packed.header.sets * packed.lanes() * 8);
  }
  if (numbers.one_in(8)) block.resize(static_cast<size_t>(numbers.below(static_cast<int64_t>(block.size()))));
  if (numbers.one_in(8)) block.resize(block.size() + static_cast<size_t>(numbers.from(1, 200)), numbers.byte());
  const auto size = static_cast<int64_t>(block.size());
  if (size >= 64 && !numbers.one_in(8)) std::memcpy(block.data() + offsetof(Header, bytes), &size, sizeof size);
  return block;
}

}  // namespace
}  // namespace sparse_accel
