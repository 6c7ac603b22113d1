#include "src/train/data/batch.h"

#include <algorithm>

#include "src/core/error.h"

namespace amur {
namespace {

const TextUnit& unit_of(const LocalBatch& batch, int32_t unit) {
  const auto queries = static_cast<int32_t>(batch.queries.size());
  return unit < queries ? batch.queries[static_cast<size_t>(unit)]
                        : batch.documents[static_cast<size_t>(unit - queries)];
}

// Cuts units first..last-1 of the batch, shortest first; equal lengths stay in order of the batch.
void cut(const LocalBatch& batch, int32_t first, int32_t last, int64_t chunk_tokens,
         std::vector<Chunk>& chunks) {
  std::vector<int32_t> order;
  for (int32_t unit = first; unit < last; ++unit) order.push_back(unit);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return unit_of(batch, a).length < unit_of(batch, b).length;
  });
  bool open = false;
  for (const int32_t unit : order) {
    const int64_t length = unit_of(batch, unit).length;
    if (!open || chunks.back().tokens + length > chunk_tokens) {
      chunks.emplace_back();
      open = true;
    }
    chunks.back().units.push_back(unit);
    chunks.back().tokens += length;
  }
}

}  // namespace

std::vector<Chunk> plan_chunks(const LocalBatch& batch, int64_t chunk_tokens,
                               bool separate_towers) {
  AMUR_CHECK(chunk_tokens > 0, "a chunk of {} tokens", chunk_tokens);
  const auto queries = static_cast<int32_t>(batch.queries.size());
  const auto units = queries + static_cast<int32_t>(batch.documents.size());
  std::vector<Chunk> chunks;
  if (separate_towers) {
    cut(batch, 0, queries, chunk_tokens, chunks);
    cut(batch, queries, units, chunk_tokens, chunks);
  } else {
    cut(batch, 0, units, chunk_tokens, chunks);
  }
  return chunks;
}

PackedChunk::PackedChunk(const LocalBatch& batch, const Chunk& chunk, const RandomKey* step_key,
                         Device device) {
  AMUR_CHECK(!chunk.units.empty(), "a chunk without texts");
  const auto sequences = static_cast<int64_t>(chunk.units.size());
  ids_ = Tensor({chunk.tokens}, DType::i32);
  cu_seqlens_ = Tensor({sequences + 1}, DType::i32);
  if (step_key != nullptr) keys_ = Tensor({sequences}, DType::i64);
  auto* ids = ids_.as<int32_t>();
  auto* bounds = cu_seqlens_.as<int32_t>();
  int32_t at = 0;
  bounds[0] = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const TextUnit& unit = unit_of(batch, chunk.units[static_cast<size_t>(s)]);
    AMUR_CHECK(unit.length > 0 && at + unit.length <= chunk.tokens,
               "{} tokens at {} of a chunk of {}", unit.length, at, chunk.tokens);
    std::copy_n(batch.tokens.begin() + unit.first, unit.length, ids + at);
    at += unit.length;
    bounds[s + 1] = at;
    longest_ = std::max<int64_t>(longest_, unit.length);
    if (step_key != nullptr)
      keys_.as<int64_t>()[s] = static_cast<int64_t>(step_key->fold(static_cast<uint64_t>(unit.view))
                                                        .fold(static_cast<uint64_t>(unit.sample))
                                                        .value());
  }
  AMUR_CHECK(at == chunk.tokens, "{} tokens in a chunk planned for {}", at, chunk.tokens);
  for (Tensor* t : {&ids_, &cu_seqlens_, &keys_}) *t = on_device(std::move(*t), device);
}

ChunkView PackedChunk::view() const {
  return {ids_.view(), {cu_seqlens_.view(), keys_.view(), longest_}};
}

}  // namespace amur
