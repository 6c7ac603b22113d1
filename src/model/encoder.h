// The text encoder: embedding, layers, pooling, projection. Its options and how they map to weights.
#pragma once

#include <memory>
#include <string>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "src/model/module.h"
#include "src/model/parameter.h"

namespace amur {

enum class NormPosition : uint8_t { pre, post };
enum class PositionKind : uint8_t { learned, sinusoidal, rotary, none };
enum class TowerKind : uint8_t { shared, separate };

// `model.*` of the configuration.
struct ModelConfig {
  int64_t layers = 1;  // 0: a static embedding model (no positions, no norms)
  int64_t hidden = 256;
  int64_t heads = 4;
  int64_t head_size = 0;  // 0: hidden / heads
  int64_t ffn = 0;        // 0: 4 * hidden (gated: 8/3 * hidden, rounded up to 64)
  ActivationKind activation = ActivationKind::gelu;
  NormKind norm = NormKind::layer;
  NormPosition norm_position = NormPosition::pre;
  double norm_eps = 1e-6;
  PositionKind position = PositionKind::learned;
  double rotary_base = 10000;
  PoolingKind pooling = PoolingKind::mean;
  int64_t projection = 0;  // 0: none; else the width of the embedding
  TowerKind towers = TowerKind::shared;
  double dropout = 0.1;
  double attention_dropout = 0;
  double word_dropout = 0;   // share of tokens removed from training texts, by the data pipeline
  int64_t max_length = 64;   // tokens a text is cut at, with the markers; learned positions have as many rows
  bool bias = true;          // of linear layers and LayerNorm
  bool key_bias = false;
  double init_std = 0.02;       // of linear weights (truncated normal); embeddings: embedding_std
  double embedding_std = 0.02;
  double residual_init = 0;     // 0: 1/sqrt(2 layers), factor on the std of output projections

  int64_t vocab = 0;  // set from the vocabulary, not by the user

  int64_t resolved_head_size() const { return head_size ? head_size : hidden / heads; }
  int64_t resolved_ffn() const;
  int64_t embedding_size() const { return projection ? projection : hidden; }
};

class Encoder {
 public:
  // Registers its parameters as `prefix`.* in `parameters`, which must outlive it.
  Encoder(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters);
  ~Encoder();

  // h [S, e] parameter dtype: embeddings before normalisation. Pushes what the backward needs on
  // context.saved, unless that is null.
  void forward(const Context& context, TensorView h);
  // From dh [S, e] (may be overwritten); pops what the forward of the same chunk pushed and adds to
  // the gradient sinks.
  void backward(const Context& context, TensorView dh);

  // Bytes that `forward` leaves in context.saved for a chunk of this size, exactly.
  size_t saved_bytes(int64_t tokens, int64_t sequences, DType dtype) const;
  // FLOPs of the GEMMs and attention of one forward over sequences of these lengths' sums: tokens,
  // and the sum of squared lengths.
  double forward_flops(int64_t tokens, int64_t squared_lengths) const;
  int64_t embedding_size() const;
  // The token table: its rows are updated lazily.
  Parameter& token_table();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace amur
