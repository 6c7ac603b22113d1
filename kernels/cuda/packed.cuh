// Finding a sequence, or a tile of one, from cu_seqlens.
#pragma once

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {

// The last s with first_of(s) <= at, where first_of grows and first_of(0) <= at.
template <class First>
__device__ int64_t last_not_after(int64_t at, int64_t sequences, const First& first_of) {
  int64_t low = 0, high = sequences - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (first_of(middle) <= at)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The same for all lanes of a warp together, which look at 32 places at a time.
template <class First>
__device__ int64_t warp_last_not_after(int64_t at, int64_t sequences, const First& first_of) {
  const int64_t lane = threadIdx.x % 32;
  int64_t low = 0, places = sequences;  // it is one of low .. low + places - 1
  while (places > 1) {
    const int64_t step = (places + 31) / 32;
    const bool not_after = lane * step < places && first_of(low + lane * step) <= at;
    const int64_t skipped = (__popc(__ballot_sync(0xffffffffu, not_after)) - 1) * step;
    low += skipped;
    places = places - skipped < step ? places - skipped : step;
  }
  return low;
}

// The sequence that holds token t: cu[s] <= t < cu[s + 1]. By a warp.
__device__ inline int64_t warp_sequence_of(int64_t t, int64_t sequences, const int32_t* cu) {
  return warp_last_not_after(t, sequences, [cu](int64_t s) { return int64_t{cu[s]}; });
}

// Of those that tiles_for counts.
struct SequenceTile {
  int64_t sequence;
  int64_t begin;   // first token of the sequence
  int64_t length;  // its tokens
  int64_t first;   // position of the tile's first token in the sequence

  __device__ bool empty() const { return first >= length; }
};
__device__ inline SequenceTile tile_of(int64_t tile, int64_t rows, int64_t sequences,
                                       const int32_t* cu) {
  const auto first_tile = [=](int64_t s) { return cu[s] / rows + s; };
  const int64_t s = last_not_after(tile, sequences, first_tile);
  return {s, cu[s], cu[s + 1] - cu[s], (tile - first_tile(s)) * rows};
}

// The same, by a warp, where each sequence has `of_each` tiles; 0: as many as tiles_for counts.
__device__ inline SequenceTile warp_tile_of(int64_t tile, int64_t rows, int64_t of_each,
                                            int64_t sequences, const int32_t* cu) {
  if (of_each > 0) {
    const int64_t s = tile / of_each;
    return {s, cu[s], cu[s + 1] - cu[s], (tile - s * of_each) * rows};
  }
  const auto first_tile = [=](int64_t s) { return cu[s] / rows + s; };
  const int64_t s = warp_last_not_after(tile, sequences, first_tile);
  return {s, cu[s], cu[s + 1] - cu[s], (tile - first_tile(s)) * rows};
}

}  // namespace amur::cuda
