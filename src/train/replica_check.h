// Whether the copies of parameters and optimizer state that several ranks hold are still equal.
#pragma once

#include <span>
#include <string>

#include "comm/process_grid.h"
#include "src/model/parameter.h"
#include "src/train/optimizer/optimizer.h"

namespace amur {

// Compares check sums: of every tensor over dp, of those that are not sharded over the whole grid.
// Throws NumericError on every rank if some differ, naming the first tensor and the ranks that
// differ from most others. `optimizer` is its name, for the names of the slots. Collective; reads
// all of this rank's state once, sends 16 bytes a tensor.
void require_equal_replicas(ParameterSet& parameters, std::span<const OptimizerSlot> slots,
                            const std::string& optimizer, int64_t step, ProcessGrid& grid);

}  // namespace amur
