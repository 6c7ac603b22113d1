// Which engine computes each attention of the model on a GPU (kernels/attention_engine.h).
#pragma once

#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "kernels/attention_engine.h"
#include "src/train/config/config.h"
#include "src/train/run_record.h"

namespace amur {

class Runtime;

// What a run can ask of an engine other than our own: nothing where it computes in another type
// than bf16. With dropout the backward is always our own, the forward is so but in evaluations;
// longest texts of every length_bucket up to model.max_length, heads as the ranks of a
// tensor-parallel group have them. Layers that see a window are not in it.
std::vector<AttentionKind> attention_kinds(const Config& config, int tp);

// The name of its choice: all that it depends on (src/core/choices.h).
std::string choice_name(const AttentionKind& kind, const std::string& device_name,
                        const std::string& library);

// `runtime.attention`: under `auto` rank 0 times what the choices of this process do not have,
// unless `runtime.tune` is off, and all ranks compute by its choices from now on. Nothing on the
// CPU. Collective.
void choose_attention_engines(const Config& config, Device device, ProcessGrid& grid,
                              Runtime& runtime, RunRecord& record);

}  // namespace amur
