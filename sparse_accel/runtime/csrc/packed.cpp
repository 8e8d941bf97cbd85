#include "packed.h"

#include <cstring>
#include <vector>

namespace sparse_accel {
namespace {

// Takes parts of a block one after the other, each at a multiple of 64 bytes.
struct Parts {
  const uint8_t* block;
  int64_t size, at;

  // Returns where a part of `bytes` bytes begins, or null if the block ends before the part does.
  const uint8_t* take(int64_t bytes) {
    at = (at + 63) / 64 * 64;
    if (bytes < 0 || at > size || bytes > size - at) return nullptr;
    const uint8_t* part = block + at;
    at += bytes;
    return part;
  }
};

const char* check_order(const Packed& packed) {
  // Results in the order of rows: a kernel brings SORTED rows back in order, or none.
  const int rows = packed.padded_rows();
  const bool undone = packed.header.encoding == LANES16 && !packed.header.ordered;
  if (undone && rows % SORTED) return "packed weight: its groups are not whole blocks of 64 rows";
  const bool any = packed.header.ordered && packed.sparse();
  std::vector<bool> seen(rows, false);
  for (int position = 0; position < rows; ++position) {
    const int32_t row = packed.order[position];
    if (row < 0 || row >= rows || seen[row]) return "packed weight: its order of rows is not a permutation";
    if (!any && (undone ? row / SORTED != position / SORTED : row != position))
      return "packed weight: its order of rows cannot be undone";
    seen[row] = true;
  }
  return nullptr;
}

const char* check_sets(const Packed& packed) {
  const Header& header = packed.header;
  if (packed.begin[0] != 0 || packed.begin[header.groups] != static_cast<uint32_t>(header.sets))
    return "packed weight: its groups do not have all sets";
  for (int group = 0; group < header.groups; ++group)
    if (packed.begin[group] > packed.begin[group + 1]) return "packed weight: its groups are not in order";
  // Activations end with padding: see Layout in kernels.h.
  const int last = header.encoding == LANES16 ? (header.columns + 31) / 32 - 1 : (header.columns + 31) / 32 * 32 - 16;
  for (int set = 0; set < header.sets; ++set)
    if (packed.windows[set] > last) return "packed weight: a window is outside of the activations";
  return nullptr;
}

}  // namespace

const char* read_packed(const uint8_t* block, int64_t size, Packed* out) {
  if (!block || size < static_cast<int64_t>(sizeof(Header))) return "packed weight: too short";
  Header& header = out->header;
  std::memcpy(&header, block, sizeof header);
  if (header.magic != MAGIC) return "packed weight: these are not the bytes of a packed weight";
  if (header.format != FORMAT) return "packed weight: of another version of this library";
  if (header.encoding < LANES16 || header.encoding > ROWS) return "packed weight: unknown encoding";
  const int lanes = out->lanes();
  if (header.rows < 1 || header.rows > MOST_ROWS || header.columns < 1 || header.columns > MOST_COLUMNS)
    return "packed weight: its shape is not possible";
  if (header.groups < (header.rows + lanes - 1) / lanes || header.groups > header.rows / lanes + SORTED)
    return "packed weight: it has another number of groups";
  if (header.sets < 0 || (header.ordered != 0 && header.ordered != 1)) return "packed weight: its header is damaged";
  Parts parts{block, size, sizeof(Header)};
  const int64_t padded = out->padded_rows();
  out->row_sums = reinterpret_cast<const int32_t*>(parts.take(padded * 4));
  out->order = reinterpret_cast<const int32_t*>(parts.take(padded * 4));
  out->begin = nullptr;
  out->windows = nullptr;
  int64_t weights = 0;
  if (out->sparse()) {
    out->begin = reinterpret_cast<const uint32_t*>(parts.take((int64_t{header.groups} + 1) * 4));
    out->windows = reinterpret_cast<const uint16_t*>(parts.take(int64_t{header.sets} * 2));
    weights = int64_t{header.sets} * lanes * 8;
  } else {
    weights = padded * (header.encoding == DENSE16 ? (header.columns + 3) / 4 * 4 : header.columns);
  }
  out->weights = parts.take(weights);
  if (!out->row_sums || !out->order || !out->weights || (out->sparse() && (!out->begin || !out->windows)))
    return "packed weight: it ends too early";
  if (parts.at != size || header.bytes != size) return "packed weight: it has another length than its header says";
  if (reinterpret_cast<uintptr_t>(block) % 8) return "packed weight: its bytes are not aligned";
  if (const char* wrong = check_order(*out)) return wrong;
  return out->sparse() ? check_sets(*out) : nullptr;
}

}  // namespace sparse_accel
