// A grown embedding model, its optimizer state and its configuration, by the rules of
// src/model/growth.h.
#pragma once

#include <span>

#include "src/model/growth.h"
#include "src/train/embedding_model.h"
#include "src/train/optimizer/optimizer.h"

namespace amur {

// Values, multipliers and constants of `to` from those of `from`, which both hold whole tensors;
// `to` is initialised.
void widen_model(const Growth& growth, EmbeddingModel& from, EmbeddingModel& to);
// Optimizer state of the grown model, from the slots of the same kind of the old one, `from`.
void widen_state(const Growth& growth, EmbeddingModel& from, std::span<const OptimizerSlot> old,
                 std::span<const OptimizerSlot> grown);
// The configuration that the grown model is trained on with.
Config grown_config(const Config& config, const Growth& growth);

}  // namespace amur
