// Work on many tensors in one launch: each is cut into pieces, and blocks take piece after piece,
// whosever it is.
#pragma once

#include <vector>

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/staging.cuh"

namespace amur::cuda {

inline constexpr int64_t kPieceElements = 16384;

inline int64_t pieces_of(int64_t elements) {
  return (elements + kPieceElements - 1) / kPieceElements;
}

// What every entry of a list of tensors begins with. Pieces are counted through the list.
struct Pieces {
  int64_t elements;
  int64_t first_piece;
};

// The elements first .. end-1 of entries[index].
struct Piece {
  int64_t index, first, end;
};

// Piece number `piece` of a list, by all lanes of a warp together.
template <class Entry>
__device__ Piece piece_of(const Entry* entries, int64_t count, int64_t piece) {
  const int64_t index =
      warp_last_not_after(piece, count, [=](int64_t k) { return entries[k].first_piece; });
  const int64_t first = (piece - entries[index].first_piece) * kPieceElements;
  const int64_t end = first + kPieceElements;
  return {index, first, end < entries[index].elements ? end : entries[index].elements};
}

}  // namespace amur::cuda
