// Which algorithm computes each product of the model on a GPU: measured before the first step.
#pragma once

#include <vector>

#include "comm/process_grid.h"
#include "kernels/product.h"
#include "src/train/embedding_model.h"
#include "src/train/run_record.h"

namespace amur {

class Runtime;

// The products of one forward and backward pass through the model's blocks on this rank, each once:
// for chunks of `chunk_tokens` tokens, and for the smaller buckets (kernels/product.h) down to an
// eighth of that; a chunk is full or nearly so, but for the last ones. `sinks`: of weight
// gradients.
std::vector<Product> products_of(EmbeddingModel& model, int64_t chunk_tokens, DType sinks);

// Those and the products of the loss stage: rank 0 measures the products of all ranks that the
// choices of this process (src/core/choices.h) do not have, where that is wanted (`runtime.tune`),
// and all ranks compute by its choices from now on. Nothing on the CPU. Collective.
void choose_product_algorithms(const Config& config, EmbeddingModel& model, int64_t chunk_tokens,
                               DType sinks, ProcessGrid& grid, Runtime& runtime, RunRecord& record);

}  // namespace amur
