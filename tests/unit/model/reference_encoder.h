// The published encoders, one text at a time, in plain double loops.
#pragma once

#include <string>
#include <vector>

#include "src/model/encoder.h"

namespace amur::test {

// BERT (Devlin et al. 2018): learned positions, post-norm, GELU, biases; mean or CLS pooling.
std::vector<double> bert_embedding(const ModelConfig& config, ParameterSet& parameters,
                                   const std::string& prefix, const std::vector<int32_t>& tokens);
// ModernBERT (Warner et al. 2024): rotary positions, pre-norm with a normalised embedding and none
// before the first attention, GeGLU, no biases; layers between global ones see a window and have a
// rotary base of their own (config.local_rotary_base, which must be given with local_attention).
std::vector<double> modernbert_embedding(const ModelConfig& config, ParameterSet& parameters,
                                         const std::string& prefix,
                                         const std::vector<int32_t>& tokens);

}  // namespace amur::test
