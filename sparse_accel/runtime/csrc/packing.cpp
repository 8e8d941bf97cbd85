#include "packing.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace sparse_accel {
namespace {

constexpr int IN_A_SET = 4;  // weights of a lane in one set

// What differs between the two sparse encodings.
struct Lanes {
  int lanes, window, step;
  // Whether products of neighbours are added in 16 bits, so that pairs which could overflow must not be neighbours.
  bool sums_in_16_bits;
};

Lanes lanes_of(Encoding encoding) {
  if (encoding == LANES16) return {16, 64, 32, false};
  return {8, 16, 1, true};
}

struct Entry {
  int32_t column;
  int8_t weight;
};

struct Sets {
  std::vector<uint32_t> begin{0};
  std::vector<uint16_t> windows;
  std::vector<uint8_t> bytes;
};

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The nonzero weights of each row, with their packed columns, from left to right.
std::vector<std::vector<Entry>> rows_of(const Weight& weight, const std::vector<int32_t>& input_order) {
  std::vector<std::vector<Entry>> rows(weight.rows);
  const int64_t columns = input_order.empty() ? weight.columns : static_cast<int64_t>(input_order.size());
  for (int64_t packed = 0; packed < columns; ++packed) {
    const int64_t column = input_order.empty() ? packed : input_order[packed];
    if (column >= weight.columns) continue;
    const int8_t* values = weight.values + column * weight.rows;
    for (int64_t row = 0; row < weight.rows; ++row)
      if (values[row]) rows[row].push_back({static_cast<int32_t>(packed), values[row]});
  }
  return rows;
}

// Position -> row. Rows with similar numbers of weights share a group, because a group has as many sets as its longest row
// needs. Within SORTED rows a kernel can undo the order; beyond, the reader has to.
std::vector<int32_t> order_of(const std::vector<std::vector<Entry>>& rows, int64_t padded, int64_t sorted) {
  std::vector<int32_t> order(padded);
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](int32_t row) { return row < static_cast<int64_t>(rows.size()) ? rows[row].size() : 0; };
  for (int64_t at = 0; sorted > 1 && at < padded; at += sorted)
    std::stable_sort(order.begin() + at, order.begin() + std::min(padded, at + sorted),
                     [&](int32_t a, int32_t b) { return length(a) < length(b); });
  return order;
}

// Two sums, each of two products of an activation (0 to 255) with a weight: they fit into int16 if neighbours of the same
// sign add up to at most 128.
bool fits_in_16_bits(int a, int b) {
  return std::max(a, 0) + std::max(b, 0) <= 128 && std::max(-a, 0) + std::max(-b, 0) <= 128;
}

// Adds the sets of one group: `row[lane]` points to the lane's weights.
void add_group(const Lanes& kind, int64_t columns, const std::vector<const std::vector<Entry>*>& row, Sets* sets) {
  std::vector<size_t> next(kind.lanes, 0);
  const int64_t last = std::max<int64_t>(rounded_up(columns, 32) - kind.window, 0);
  for (;;) {
    int64_t first = INT64_MAX;
    for (int lane = 0; lane < kind.lanes; ++lane)
      if (next[lane] < row[lane]->size()) first = std::min<int64_t>(first, (*row[lane])[next[lane]].column);
    if (first == INT64_MAX) break;
    // A window of LANES16 may begin in the last 32 columns: its second half is padding. One of LANES8 stays inside.
    const int64_t begin = kind.step == 1 ? std::min(first, last) : first / kind.step * kind.step;
    const size_t at = sets->bytes.size();
    const size_t half = static_cast<size_t>(kind.lanes) * IN_A_SET;
    sets->bytes.resize(at + 2 * half, 0);
    for (int lane = 0; lane < kind.lanes; ++lane) {
      const std::vector<Entry>& entries = *row[lane];
      int8_t slots[IN_A_SET] = {0, 0, 0, 0};
      int slot = 0;
      while (next[lane] < entries.size() && entries[next[lane]].column < begin + kind.window) {
        const Entry& entry = entries[next[lane]];
        // The second of two neighbours: if it could overflow with the first, it goes to the other two.
        if (kind.sums_in_16_bits && slot == 1 && !fits_in_16_bits(slots[0], entry.weight)) slot = 2;
        if (kind.sums_in_16_bits && slot == 3 && !fits_in_16_bits(slots[2], entry.weight)) break;
        if (slot == IN_A_SET) break;
        slots[slot] = entry.weight;
        sets->bytes[at + lane * IN_A_SET + slot] = static_cast<uint8_t>(entry.column - begin);
        sets->bytes[at + half + lane * IN_A_SET + slot] = static_cast<uint8_t>(entry.weight);
        ++slot;
        ++next[lane];
      }
    }
    sets->windows.push_back(static_cast<uint16_t>(begin / kind.step));
  }
  sets->begin.push_back(static_cast<uint32_t>(sets->windows.size()));
}

Sets sets_of(const Lanes& kind, int64_t columns, const std::vector<std::vector<Entry>>& rows,
             const std::vector<int32_t>& order) {
  static const std::vector<Entry> padding;
  Sets sets;
  std::vector<const std::vector<Entry>*> group(kind.lanes);
  for (size_t at = 0; at < order.size(); at += kind.lanes) {
    for (int lane = 0; lane < kind.lanes; ++lane) {
      const int32_t row = order[at + lane];
      group[lane] = row < static_cast<int64_t>(rows.size()) ? &rows[row] : &padding;
    }
    add_group(kind, columns, group, &sets);
  }
  return sets;
}

// Appends a part, at a multiple of 64 bytes, and returns where it is.
size_t append(std::vector<uint8_t>* bytes, const void* data, size_t size) {
  const size_t at = rounded_up(bytes->size(), 64);
  bytes->resize(at + size, 0);
  if (size) std::memcpy(bytes->data() + at, data, size);
  return at;
}

Block block_of(Header header, const std::vector<std::vector<Entry>>& rows, const std::vector<int32_t>& order,
               const Sets& sets, const std::vector<uint8_t>& weights) {
  std::vector<int32_t> sums(order.size(), 0);
  for (size_t position = 0; position < order.size(); ++position)
    if (order[position] < static_cast<int64_t>(rows.size()))
      for (const Entry& entry : rows[order[position]]) sums[position] += entry.weight;
  Block block;
  block.bytes.reserve(sizeof header + order.size() * 8 + sets.begin.size() * 4 + sets.windows.size() * 2 +
                      weights.size() + 6 * 64);
  append(&block.bytes, &header, sizeof header);
  append(&block.bytes, sums.data(), sums.size() * sizeof(int32_t));
  append(&block.bytes, order.data(), order.size() * sizeof(int32_t));
  if (header.sets || sets.begin.size() > 1) {
    append(&block.bytes, sets.begin.data(), sets.begin.size() * sizeof(uint32_t));
    append(&block.bytes, sets.windows.data(), sets.windows.size() * sizeof(uint16_t));
  }
  append(&block.bytes, weights.data(), weights.size());
  header.bytes = static_cast<int64_t>(block.bytes.size());
  std::memcpy(block.bytes.data(), &header, sizeof header);
  block.density = static_cast<double>(weights.size()) / (header.sets ? 2 : 1) / header.rows / header.columns;
  return block;
}

Block pack_sparse(Encoding encoding, const PackingRequest& request, Header header,
                  const std::vector<std::vector<Entry>>& rows) {
  const Lanes kind = lanes_of(encoding);
  // Rows are sorted in blocks of 64 only where the kernel can bring 64 sums back in order: LANES16.
  const bool undone = encoding == LANES16 && !request.ordered;
  const int64_t padded = rounded_up(header.rows, undone ? SORTED : kind.lanes);
  const std::vector<int32_t> order = order_of(rows, padded, request.ordered ? padded : undone ? SORTED : 1);
  const Sets sets = sets_of(kind, header.columns, rows, order);
  header.groups = static_cast<int32_t>(padded / kind.lanes);
  header.sets = static_cast<int32_t>(sets.windows.size());
  return block_of(header, rows, order, sets, sets.bytes);
}

Block pack_dense(Encoding encoding, Header header, const std::vector<std::vector<Entry>>& rows) {
  const int64_t lanes = encoding == DENSE16 ? 16 : 1;
  const int64_t padded = rounded_up(header.rows, lanes);
  const int64_t columns = encoding == DENSE16 ? rounded_up(header.columns, 4) : header.columns;
  std::vector<uint8_t> weights(padded * columns, 0);
  for (int64_t row = 0; row < header.rows; ++row)
    for (const Entry& entry : rows[row]) {
      const int64_t at = encoding == DENSE16
                             ? (row / 16 * (columns / 4) + entry.column / 4) * 64 + row % 16 * 4 + entry.column % 4
                             : row * columns + entry.column;
      weights[at] = static_cast<uint8_t>(entry.weight);
    }
  header.groups = static_cast<int32_t>(padded / lanes);
  header.sets = 0;
  Block block = block_of(header, rows, order_of(rows, padded, 1), Sets(), weights);
  block.density = 1;
  return block;
}

}  // namespace

Block pack(const Weight& weight, const PackingRequest& request) {
  if (weight.rows < 1 || weight.rows > MOST_ROWS || weight.columns < 1 || weight.columns > MOST_COLUMNS)
    throw std::invalid_argument("a weight must have 1 to 1,048,576 rows and 1 to 65,536 columns");
  if (static_cast<int64_t>(request.input_order.size()) > MOST_COLUMNS)
    throw std::invalid_argument("the order of the columns is too long");
  for (const int32_t column : request.input_order)
    if (column < 0) throw std::invalid_argument("the order of the columns has a negative number");
  const int64_t columns =
      request.input_order.empty() ? weight.columns : static_cast<int64_t>(request.input_order.size());
  Header header{};
  header.magic = MAGIC;
  header.format = FORMAT;
  header.rows = static_cast<int32_t>(weight.rows);
  header.columns = static_cast<int32_t>(columns);
  header.ordered = request.ordered;
  const std::vector<std::vector<Entry>> rows = rows_of(weight, request.input_order);
  int64_t nonzero = 0;
  for (const std::vector<Entry>& row : rows) nonzero += static_cast<int64_t>(row.size());
  const double least = static_cast<double>(nonzero) / static_cast<double>(weight.rows) / static_cast<double>(columns);
  const bool no_dense = request.sparse == request.dense && request.sparse != ROWS;
  if (no_dense || (request.sparse != ROWS && least < request.most_density)) {
    header.encoding = request.sparse;
    Block block = pack_sparse(request.sparse, request, header, rows);
    if (no_dense || block.density <= request.most_density) return block;
  }
  header.encoding = request.dense;
  return pack_dense(request.dense, header, rows);
}

}  // namespace sparse_accel
