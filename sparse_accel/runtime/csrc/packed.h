// A packed weight matrix: one block of bytes, in the order in which a kernel reads it.
//
//   header         64 bytes, see Header
//   row sums       int32 [padded rows]: the sum of a row's weights, for the zero point of the activations
//   order          int32 [padded rows]: position -> row. Rows >= header.rows are padding
//   sets' begin    uint32 [groups + 1]                                              } sparse encodings only
//   windows        uint16 [sets]                                                    }
//   weights        see below
//
// Each part begins at a multiple of 64 bytes. Three encodings:
//
// LANES16 and LANES8 (sparse, of any pattern). A *group* is 16 (8) rows, one for each int32 lane of a vector register. Its
// nonzero weights lie in *sets*. A set looks at one window of 64 (16) activations. For each lane it has up to 4 positions
// within the window and the 4 weights there, zero where a lane has fewer:
//
//   set   | index: lane 0: i i i i | lane 1: i i i i | ... | weight: lane 0: w w w w | lane 1: w w w w | ...
//
// so a kernel shuffles the window by the index and multiplies with the weights: 4 products a lane, added to its sum.
// Windows begin at multiples of 32 activations (LANES16) or anywhere (LANES8). They are found from left to right: the next
// one begins at the first nonzero weight of any lane that no set has yet.
//
// DENSE16. Groups of 16 rows; for every 4 columns the 16 x 4 weights: [groups][columns / 4][16][4].
//
// ROWS. [rows][columns], for the portable kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparse_accel {

enum Encoding : int32_t { LANES16 = 1, LANES8 = 2, DENSE16 = 3, ROWS = 4 };

constexpr int32_t MAGIC = 0x4b415053;  // "SPAK"
constexpr int32_t FORMAT = 1;
// With at most so many columns, a sum of products of 8 bits, 255 * 128 each, fits into 32 bits.
constexpr int64_t MOST_COLUMNS = 65536;
constexpr int64_t MOST_ROWS = 1 << 20;
constexpr int SORTED = 64;  // rows that are sorted together where a kernel brings them back in order

struct Header {
  int32_t magic, format, encoding;
  int32_t rows, columns;
  int32_t groups;      // of 16 or 8 rows (ROWS: of one)
  int32_t sets;        // 0 in dense encodings
  int32_t ordered;     // 1: results stay in the order of positions; 0: results are in the order of rows
  int64_t bytes;       // of the whole block
  int32_t unused[6];
};
static_assert(sizeof(Header) == 64, "the header has 64 bytes");

// Where the parts of a block are.
struct Packed {
  Header header;
  const int32_t* row_sums;
  const int32_t* order;
  const uint32_t* begin;
  const uint16_t* windows;
  const uint8_t* weights;

  int lanes() const { return header.encoding == ROWS ? 1 : header.encoding == LANES8 ? 8 : 16; }
  int padded_rows() const { return header.groups * lanes(); }
  bool sparse() const { return header.encoding == LANES16 || header.encoding == LANES8; }
};

// Reads a block. Returns null, or what is wrong with it; then *out must not be used. After it, no kernel reads or writes
// outside of its buffers, whatever the block's bytes are.
const char* read_packed(const uint8_t* block, int64_t size, Packed* out);

}  // namespace sparse_accel
