// How kernels are launched, as plain arithmetic: tests/unit/cuda/test_kernel_launches.cpp holds it
// against what devices take, without one.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace amur::cuda {

// Threads of a block; where a kernel has other ones, that is told.
inline constexpr int kThreads = 256;
inline constexpr int64_t kMostBlocks = 4096;  // several waves of every device

// For loops of stride gridDim.x * blockDim.x over the work.
inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::clamp((items - 1) / kThreads + 1, int64_t{1}, kMostBlocks));
}
// For blocks that take one item (a row, a token, a piece) after another.
inline unsigned blocks_for_each(int64_t items) {
  return static_cast<unsigned>(std::clamp(items, int64_t{1}, kMostBlocks));
}

// For warps that each take a run of neighbouring rows. Enough to fill every device, few enough that
// a run is some rows long where it pays.
inline constexpr int64_t kMostRunBlocks = 1024;
// Rows that warps keep in registers: their elements at most.
inline constexpr int64_t kHeldRow = 1024;
// Where warps sum up over such rows and blocks leave partial sums: blocks of fewer threads, for their
// registers, three for each multiprocessor of an H200.
inline constexpr int kSumThreads = 128, kSumWarps = kSumThreads / 32;
inline constexpr int64_t kMostPartialBlocks = 396;
inline unsigned blocks_for_runs(int64_t rows, int warps_of_block, int64_t most = kMostRunBlocks) {
  return static_cast<unsigned>(
      std::clamp((rows + warps_of_block - 1) / warps_of_block, int64_t{1}, most));
}

// Blocks that take some columns of a matrix: the lines of their threads are rows.
inline constexpr int kColumnsOfTile = 32;
inline constexpr int kLinesOfTile = kThreads / kColumnsOfTile;
inline unsigned blocks_for_columns(int64_t columns) {
  return static_cast<unsigned>((columns + kColumnsOfTile - 1) / kColumnsOfTile);
}
// Sums down columns: a warp has a panel of columns, `pack` of each lane; the x of the grid. They
// are made of blocks of so many rows first: the y of the grid.
inline unsigned panels_of_columns(int64_t columns, int pack) {
  return static_cast<unsigned>((columns + 32 * pack - 1) / (32 * pack));
}
inline constexpr int64_t kMostRowBlocks = 256;
inline int64_t rows_of_block(int64_t rows) {
  return std::max<int64_t>(64, (rows + kMostRowBlocks - 1) / kMostRowBlocks);
}
inline unsigned row_blocks(int64_t rows) {
  return static_cast<unsigned>((rows + rows_of_block(rows) - 1) / rows_of_block(rows));
}

// Logits: a block takes a panel of so many rows and columns of a tile; x and y of the grid.
inline constexpr int64_t kPanelRows = 128, kPanelColumns = 256;
inline unsigned panels_across(int64_t columns) {
  return static_cast<unsigned>((columns + kPanelColumns - 1) / kPanelColumns);
}
inline unsigned panels_down(int64_t rows) {
  return static_cast<unsigned>((rows + kPanelRows - 1) / kPanelRows);
}

// Tiles of at most `rows` tokens of one sequence each. Sequence s has those from cu[s] / rows + s
// on: enough for its tokens wherever it begins, so the host need not know the boundaries. The last
// tile of a sequence may be empty.
inline int64_t tiles_for(int64_t tokens, int64_t sequences, int64_t rows) {
  return tokens / rows + sequences;
}

// Shared memory: what every device of compute capability 8.0 or newer can give a block, and what it
// gives unasked.
inline constexpr size_t kMostSharedMemory = 99 << 10;
inline constexpr size_t kUnaskedSharedMemory = 48 << 10;

// Attention: a block takes a tile of one sequence and head.
//
// In f32 and f64.
inline constexpr int kTileThreads = 128;
inline constexpr int kAcross = 8;  // threads side by side: along the other rows, and along a head
inline constexpr int kDown = kTileThreads / kAcross;
inline constexpr int kWidestHead = 128;

// Shared memory and registers for heads of up to `width_` elements; the rest is 0.
template <class A, int width_>
struct AttentionTile {
  static constexpr int kWidth = width_;
  static constexpr int kOwn = sizeof(A) == 4 ? 2 : 1;    // own rows of a thread
  static constexpr int kOther = sizeof(A) == 4 ? 4 : 2;  // other rows of a thread
  static constexpr int kColumns = kWidth / kAcross;      // of the result, of a thread
  static constexpr int kRows = kDown * kOwn;             // of a tile of either side
  static_assert(kRows == kAcross * kOther && kWidth % kAcross == 0);
  // Odd, so that threads side by side are in different banks.
  static constexpr int kStride = kWidth + 1;
  static constexpr int kWeightStride = kRows + 1;
  static constexpr int kTile = kRows * kStride;           // elements of [kRows, kWidth]
  static constexpr int kWeights = kRows * kWeightStride;  // elements of [own, other]

  static constexpr size_t bytes(int tiles, int weights) {
    return static_cast<size_t>(tiles * kTile + weights * kWeights) * sizeof(A);
  }
  static constexpr size_t kForwardBytes = bytes(3, 1);
  static constexpr size_t kQueriesBytes = bytes(4, 1);  // backward, of dQ
  static constexpr size_t kKeysBytes = bytes(4, 2);     // backward, of dK and dV
  static_assert(kKeysBytes <= kMostSharedMemory);
};

// In bf16, by tensor cores: each warp takes 16 rows of its own; the block goes over tiles of the
// other side. Results do not depend on the number of warps.
inline constexpr int kWarpRows = 16;
inline constexpr int kBackwardTile = 32;  // rows of a tile of the other side
inline constexpr int kMostForwardWarps = 8, kMostBackwardWarps = 4;

template <int width_>
struct TensorCoreTile {
  static constexpr int kWidth = width_;
  static constexpr int kStride = kWidth + 8;  // 8 rows of 16 bytes lie in different banks
  static constexpr int kForwardTile = kWidth <= 64 ? 64 : 32;
  // One block computes all gradients of a text of up to so many tokens.
  static constexpr int kWholeText = kWidth <= 64 ? 128 : 64;
};

// Backward: `whole` of short texts; of longer ones `queries` (dQ) and `keys` (dK and dV).
enum class AttentionPass { forward, whole, queries, keys };

struct TensorCoreLaunch {
  int warps;
  int others;       // rows of a tile of the other side; forward, no more than the longest needs
  int stages;       // tiles of it that are there at a time
  int64_t of_each;  // tiles of each sequence; 0: as tiles_for counts
  int64_t blocks;   // heads side by side, so that neighbours read what lies together
  size_t bytes;     // shared memory
};
// For `whole`: [keys, tile] gradients of scores; of each warp [16, 16] of dQ.
using WholeTextScores = TensorCoreTile<kBackwardTile>;
using WholeTextStaging = TensorCoreTile<16>;
template <int width>
TensorCoreLaunch tensor_core_launch(AttentionPass pass, int64_t tokens, int64_t sequences,
                                    int64_t longest, int64_t heads) {
  using Tile = TensorCoreTile<width>;
  const bool forward = pass == AttentionPass::forward, whole = pass == AttentionPass::whole;
  if (whole) longest = std::min<int64_t>(longest, Tile::kWholeText);
  const int64_t slabs = (longest + kWarpRows - 1) / kWarpRows;
  TensorCoreLaunch l{};
  // As many warps as read the other side together, but no more than the last block has work for.
  const int64_t most_warps = whole ? slabs : forward ? kMostForwardWarps : kMostBackwardWarps;
  const int64_t of_each = (slabs + most_warps - 1) / most_warps;
  l.warps = static_cast<int>((slabs + of_each - 1) / of_each);
  const int64_t tile = forward ? Tile::kForwardTile : kBackwardTile;
  l.others = static_cast<int>(forward ? std::min(tile, slabs * kWarpRows) : tile);
  l.stages = longest > tile ? 2 : 1;

  const int64_t rows = l.warps * kWarpRows, searched = tiles_for(tokens, sequences, rows);
  l.of_each = whole || of_each * sequences <= searched ? of_each : 0;
  l.blocks = heads * (l.of_each > 0 ? of_each * sequences : searched);

  const int64_t matrix_rows = (forward ? 1 : 2) * rows + 2 * l.stages * l.others;
  int64_t bytes = matrix_rows * Tile::kStride * 2 + l.warps * 32 * 16;  // of dropout: 16 a lane
  if (pass == AttentionPass::keys) bytes += 2 * l.stages * l.others * 4;
  if (whole)
    bytes += (2 + Tile::kWholeText / kWarpRows) * kBackwardTile * 4 +
             rows * (WholeTextScores::kStride + WholeTextStaging::kStride) * 2;
  l.bytes = static_cast<size_t>(bytes);
  return l;
}

// Tokens in order of their rows in a table of `rows`, those of no row behind all: two passes, each
// by some bits of the row's number, with a block for every value that these have.
inline constexpr int kMostOrderThreads = 1024;
inline constexpr int64_t kOrderTokens = 8;  // of a thread, unless there are that many threads
struct OrderLaunch {
  int low_bits;
  unsigned low_blocks, high_blocks;
  int threads;
};
inline OrderLaunch order_launch(int64_t tokens, int64_t rows) {
  OrderLaunch l{};
  l.low_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(rows))) / 2;
  l.low_blocks = 1u << l.low_bits;
  l.high_blocks = static_cast<unsigned>(rows >> l.low_bits) + 1;
  const int64_t warps = (tokens - 1) / (32 * kOrderTokens) + 1;
  l.threads = 32 * static_cast<int>(std::clamp<int64_t>(warps, 1, kMostOrderThreads / 32));
  return l;
}

// Rows that are added one after another: a block takes 32 lanes of columns, its warps 32 rows each,
// in turn.
inline int threads_for_sum(int64_t rows) {
  return 32 * static_cast<int>(std::clamp<int64_t>((rows - 1) / 32 + 1, 1, kThreads / 32));
}
inline unsigned blocks_across(int64_t columns, int columns_of_lane) {
  const int64_t columns_of_block = int64_t{32} * columns_of_lane;
  return static_cast<unsigned>((columns + columns_of_block - 1) / columns_of_block);
}

}  // namespace amur::cuda
