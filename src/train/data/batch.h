// A global batch as one dp rank sees it, and its cut into chunks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/core/random.h"
#include "src/model/module.h"

namespace amur {

// Where the data is: everything the order of samples depends on besides configuration and seed.
struct DataPosition {
  int64_t epoch = 0;
  int64_t sample = 0;        // samples of this epoch already used
  int64_t samples_seen = 0;  // since the start
  bool operator==(const DataPosition&) const = default;
};

// The view of a text inside its sample: part of the dropout key.
enum : int32_t { kViewQuery = 0, kViewPositive = 1, kViewFirstNegative = 2 };

// One text of a batch.
struct TextUnit {
  int64_t sample = 0;  // global sample id: position in the data set, the same at any grid
  int32_t view = 0;
  int32_t first = 0;     // in LocalBatch::tokens
  int32_t length = 0;    // tokens, at least 1
  uint64_t text_id = 0;  // 64-bit hash of the text without its prefix: equal texts are duplicates
};

// The share of one global batch that a dp rank encodes. Any rank's share may be empty.
struct LocalBatch {
  DataPosition start;          // position before this batch
  DataPosition end;            // and after it
  int64_t global_queries = 0;  // N
  std::vector<int32_t> tokens;
  std::vector<TextUnit> queries;
  std::vector<TextUnit> documents;  // positives and hard negatives, in query order
  std::vector<int32_t> positive;    // [queries] index in `documents`
  // Further right documents of a query (text ids), masked out of its negatives: those of query i
  // are other_positives[other_first[i] .. other_first[i+1]).
  std::vector<int32_t> other_first;  // [queries + 1]
  std::vector<uint64_t> other_positives;
  int64_t truncated = 0;  // texts cut at max_length
};

// Some texts of a batch that the encoder takes at once.
struct Chunk {
  // Unit u < queries.size() is a query, otherwise document u - queries.size().
  std::vector<int32_t> units;
  int64_t tokens = 0;
};

// Cuts units into chunks of at most `chunk_tokens` tokens (a longer text is a chunk of its own),
// from units sorted by length. With `separate_towers` queries and documents are never in one chunk.
std::vector<Chunk> plan_chunks(const LocalBatch& batch, int64_t chunk_tokens, bool separate_towers);

// The packed tensors of a chunk. `step_key` is
// RandomKey(seed).fold(RandomPurpose::dropout).fold(step); without it no dropout keys are made.
class PackedChunk {
 public:
  PackedChunk(const LocalBatch& batch, const Chunk& chunk, const RandomKey* step_key,
              Device device = Device::cpu());
  ChunkView view() const;

 private:
  Tensor ids_, cu_seqlens_, keys_;
  int64_t longest_ = 0;
};

}  // namespace amur
