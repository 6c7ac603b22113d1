// A grown embedding model and its configuration, by the rules of src/model/growth.h.
#pragma once

#include "src/model/growth.h"
#include "src/train/embedding_model.h"

namespace amur {

// How each parameter of `to` learns, and its constants, from `from`; both may be outlines.
void widen_outline(const Growth& growth, EmbeddingModel& from, EmbeddingModel& to);
// The configuration that the grown model is trained on with.
Config grown_config(const Config& config, const Growth& growth);

}  // namespace amur
