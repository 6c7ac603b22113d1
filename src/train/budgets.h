// How many tokens a rank encodes at once, and how much of their activations it keeps between the
// two passes: what `train.chunk_tokens` and `train.activation_budget` say, and where they are auto,
// what makes a step the quickest within the memory that is free.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "src/core/random.h"
#include "src/train/data/batch.h"
#include "src/train/embedding_model.h"
#include "src/train/loss/contrastive_loss.h"

namespace amur {

class ProcessGrid;
class Runtime;

struct Budgets {
  int64_t chunk_tokens = 0;
  int64_t activation_budget = 0;  // bytes
};

// Automatic chunks are never larger.
inline constexpr int64_t kLargestAutoChunk = 32768;

// What a rank of `dp` has to do in the loss stage, where all have the same.
LossExtent loss_extent(const Config& config, const EmbeddingModel& model, int dp);

// What is configured. auto: 4,096 tokens on a CPU, 16,384 on a GPU, and 1 GiB, which need no look
// at memory and are the same everywhere.
Budgets configured_budgets(const TrainConfig& config, Device device);

// What a chunk of one size takes.
struct ChunkCost {
  int64_t tokens = 0;
  size_t saved = 0;    // bytes that wait for the backward pass
  size_t scratch = 0;  // bytes that are used while it is computed
  double seconds = 0;  // forward and backward, in any unit
};

// The size of chunk, and the bytes to keep, with which a step of `step_tokens` tokens is the
// quickest within `room` bytes: chunks that are not kept are computed forward twice, and scratch
// memory is counted twice, since evaluations have their own. Where no size fits, the first, and
// nothing is kept.
Budgets choose_budgets(std::span<const ChunkCost> sizes, int64_t step_tokens, size_t room);

// Computes a chunk of the batch of each size, as a step would, and takes its costs; without the
// sizes that are larger than the batch, or for which `room` would not be enough. Gradients go
// nowhere. Collective over the tp group, whose ranks have the same batch.
std::vector<ChunkCost> measure_chunks(EmbeddingModel& model, const LocalBatch& batch,
                                      std::span<const int64_t> sizes, size_t room,
                                      const RandomKey& step_key);
// The same by arithmetic: scratch memory within a factor of two, and all sizes about as quick.
std::vector<ChunkCost> estimate_chunks(EmbeddingModel& model, const ModelConfig& config,
                                       std::span<const int64_t> sizes);

// What a run computes with; `unwritten_bytes` of this rank's memory are allocated and were not
// written yet, `first_batch` makes its share of the first batch, for the measuring. On a GPU sizes
// are measured, within the memory that is free; on a CPU they are estimated, within half of it. The
// choice of a size of chunk is one of src/core/choices.h: it decides how sums are rounded. The
// bytes kept do not change a bit. Logs what was chosen. Collective.
struct BudgetRequest {
  const Config* config = nullptr;
  EmbeddingModel* model = nullptr;
  size_t unwritten_bytes = 0;
  std::string device_name;
  std::function<LocalBatch()> first_batch;
};
Budgets plan_budgets(const BudgetRequest& request, ProcessGrid& grid, Runtime& runtime);

}  // namespace amur
