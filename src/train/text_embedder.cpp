#include "src/train/text_embedder.h"

#include <algorithm>
#include <deque>
#include <future>
#include <numeric>
#include <optional>
#include <vector>

#include "comm/runtime.h"
#include "kernels/embedding.h"
#include "kernels/rows.h"
#include "src/core/hash.h"
#include "src/model/step_copies.h"
#include "src/train/budgets.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "src/train/config/config_schema.h"
#include "src/train/data/batch.h"

namespace amur {
namespace {

// What a text is taken to cost before anyone has tokenized it.
int64_t estimated_tokens(const std::string& text, int64_t max_length) {
  return std::min<int64_t>(max_length, 2 + static_cast<int64_t>(text.size()) / 3);
}

struct Tokenized {
  LocalBatch batch;
  Chunk chunk;
};

}  // namespace

TextEmbedder::TextEmbedder(EmbeddingModel& model, const Tokenizer& tokenizer, const Config& config,
                           Communicator& dp, Runtime& runtime)
    : model_(model),
      tokenizer_(tokenizer),
      config_(config),
      dp_(dp),
      runtime_(runtime),
      scratch_(model.device()) {}

Tensor TextEmbedder::embed(std::span<const std::string> texts, int tower) {
  const int64_t max_length = config_.model.max_length;
  const int64_t budget = config_.eval.chunk_tokens > 0
                             ? config_.eval.chunk_tokens
                             : configured_budgets(config_.train, model_.device()).chunk_tokens;

  // The global plan: texts by length, cut into chunks that are dealt to the ranks in turn.
  std::vector<int32_t> order(texts.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return texts[static_cast<size_t>(a)].size() > texts[static_cast<size_t>(b)].size();
  });
  std::vector<size_t> starts;  // of chunks, in `order`
  int64_t filled = budget;
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t cost = estimated_tokens(texts[static_cast<size_t>(order[i])], max_length);
    if (filled + cost > budget) {
      starts.push_back(i);
      filled = 0;
    }
    filled += cost;
  }
  const size_t chunks = starts.size();
  starts.push_back(order.size());

  const auto ranks = static_cast<size_t>(dp_.size());
  std::vector<int64_t> counts(ranks, 0);
  std::vector<int32_t> gathered_order;  // text of each gathered row
  for (size_t r = 0; r < ranks; ++r)
    for (size_t c = r; c < chunks; c += ranks) {
      counts[r] += static_cast<int64_t>(starts[c + 1] - starts[c]);
      gathered_order.insert(gathered_order.end(), order.begin() + static_cast<long>(starts[c]),
                            order.begin() + static_cast<long>(starts[c + 1]));
    }

  const DType dtype = model_.parameters_dtype();
  const int64_t width = model_.embedding_size();
  const auto mine = static_cast<size_t>(dp_.rank());
  const bool counted = model_.tp_rank() == 0;
  Tensor gathered({static_cast<int64_t>(texts.size()), width}, dtype);
  int64_t row = std::accumulate(counts.begin(), counts.begin() + dp_.rank(), int64_t{0});
  const int64_t first_row = row;
  const auto tokenize = [&](size_t c) {
    Tokenized out;
    for (size_t i = starts[c]; i < starts[c + 1]; ++i) {
      TextUnit unit;
      unit.first = static_cast<int32_t>(out.batch.tokens.size());
      out.batch.truncated +=
          tokenizer_.encode(texts[static_cast<size_t>(order[i])], max_length, out.batch.tokens);
      unit.length = static_cast<int32_t>(out.batch.tokens.size()) - unit.first;
      out.chunk.units.push_back(static_cast<int32_t>(out.batch.queries.size()));
      out.batch.queries.push_back(unit);
    }
    out.chunk.tokens = static_cast<int64_t>(out.batch.tokens.size());
    return out;
  };
  // While a GPU computes, the cores are free for the chunks to come.
  const bool gpu = model_.device() != Device::cpu();
  const auto ahead = static_cast<size_t>(gpu ? runtime_.threads() : 1);
  std::deque<std::future<Tokenized>> tokenized;
  size_t next = mine;
  std::optional<StepCopies> copies;
  if (gpu) copies.emplace(model_.device());
  for (size_t c = mine; c < chunks; c += ranks) {
    runtime_.set_phase(fmt::format("embedding texts, chunk {}/{}", c + 1, chunks));
    for (; next < chunks && tokenized.size() < ahead; next += ranks)
      tokenized.push_back(
          std::async(gpu ? std::launch::async : std::launch::deferred, tokenize, next));
    const auto [batch, chunk] = tokenized.front().get();
    tokenized.pop_front();
    if (counted) tokens_ += chunk.tokens;
    if (counted) truncated_ += batch.truncated;
    const PackedChunk packed(batch, chunk, nullptr, model_.device());
    const ChunkView view = packed.view();
    ScratchScope scope(scratch_);
    const int64_t sequences = view.sequences();
    TensorView norms = scope.tensor({sequences}, dtype);
    Context context;
    context.chunk = &view;
    context.scratch = &scratch_;
    context.dtype = model_.dtype();
    context.copies = copies ? &*copies : nullptr;
    context.tp = model_.tp();
    const TensorView place = gathered.view().slice(row, sequences);
    TensorView h = gpu ? scope.tensor(place.shape(), dtype) : place;
    model_.tower(tower).forward(context, h);
    normalise_forward(h, h, norms);
    if (gpu) copy(place, h);
    row += sequences;
  }
  dp_.all_gather(gathered.view().slice(first_row, counts[mine]), gathered, counts);
  Tensor result(gathered.shape(), dtype);
  scatter_rows(gathered, gathered_order, result);
  return result;
}

std::string TextEmbedder::fingerprint() {
  uint64_t weights = 0;
  std::string rest;
  for (const StoredTensor& t :
       stored_tensors(model_.parameters(), {}, "", model_.tp_rank(), model_.tp_size())) {
    // The scale and the bias of the loss are no part of it.
    if (t.parameter->kind == ParamKind::scalar && t.path.find("loss.") != std::string::npos)
      continue;
    if (t.counted) weights += mix64(fnv1a(t.path)) * checksum_of(t.value, t.slab.first, t.global);
    rest += fmt::format("{} {}\n", t.path, t.global.text());
  }
  if (Communicator* tp = model_.tp())
    weights = static_cast<uint64_t>(tp->sum(static_cast<int64_t>(weights)));
  for (const auto& [name, value] : model_.constants())
    rest += fmt::format("{} {:a}\n", name, value);
  config::for_each_value(config_,
                         [&](const std::string& key, const config::Key&, const std::string& yaml) {
                           if (key.starts_with("model.") || key == "train.precision" ||
                               key == "train.chunk_tokens" || key == "eval.chunk_tokens")
                             rest += fmt::format("{} {}\n", key, yaml);
                         });
  return fmt::format("{:016x}-{:016x}-{:016x}", weights, mix64(fnv1a(rest)),
                     mix64(fnv1a(tokenizer_.serialised())));
}

void TextEmbedder::advance() {
  runtime_.advance();
}

}  // namespace amur
