// `model.*` of the configuration: the options of an encoder.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"

namespace amur {

enum class NormPosition : uint8_t { pre, post };
enum class PositionKind : uint8_t { learned, sinusoidal, rotary, none };
enum class TowerKind : uint8_t { shared, separate };

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
  int64_t positions = 0;    // rows of learned positions; 0: max_length
  bool token_type = false;  // a learned vector is added to every token: BERT's token type 0
  bool norm_gate = false;   // post-norm: norms behind blocks are g norm(x) + (1 - g) x, g learned
  PositionKind position = PositionKind::learned;
  double rotary_base = 10000;
  int64_t rotary_size = 0;  // elements of a head behind which the frequencies repeat; 0: its size
  // Local layers: a token sees those at most half so many places away. 0: there are none.
  int64_t local_attention = 0;
  int64_t global_every = 3;      // layers 0, n, 2n, .. see the whole text, the others are local
  double local_rotary_base = 0;  // of local layers; 0: rotary_base
  PoolingKind pooling = PoolingKind::mean;
  int64_t projection = 0;  // 0: none; else the width of the embedding
  TowerKind towers = TowerKind::shared;
  double dropout = 0.1;
  double attention_dropout = 0;
  double word_dropout = 0;  // share of tokens removed from training texts, by the data pipeline
  int64_t max_length = 64;  // tokens a text is cut at, with the markers
  bool bias = true;         // of linear layers and LayerNorm
  bool key_bias = false;
  double init_std = 0.02;  // of linear weights (truncated normal); embeddings: embedding_std
  double embedding_std = 0.02;
  double residual_init = 0;  // 0: 1/sqrt(2 layers), factor on the std of output projections

  int64_t vocab = 0;  // set from the vocabulary, not by the user

  int64_t resolved_head_size() const { return head_size ? head_size : hidden / heads; }
  int64_t resolved_rotary_size() const { return rotary_size ? rotary_size : resolved_head_size(); }
  int64_t resolved_ffn() const;
  // Layers behind which the kinds of layers repeat.
  int64_t layer_period() const { return local_attention > 0 ? global_every : 1; }
  bool is_local(int64_t layer) const { return layer % layer_period() != 0; }
  // How far a token of a layer sees to either side; 0: to the ends of the text.
  int64_t window_of(int64_t layer) const { return is_local(layer) ? local_attention / 2 : 0; }
  double rotary_base_of(int64_t layer) const {
    return is_local(layer) && local_rotary_base != 0 ? local_rotary_base : rotary_base;
  }
  std::string attention_text() const;  // what the layers see, for people
  int64_t resolved_positions() const { return positions ? positions : max_length; }
  // Standard deviation of the projections that write into the residual stream.
  double residual_std() const;
  int64_t embedding_size() const { return projection ? projection : hidden; }
  // UsageError where `tp` ranks cannot share the model: each must get a head, a feed-forward unit
  // and, once the vocabulary is known, a token. Shares may be uneven.
  void require_shares(int64_t tp) const;
};

}  // namespace amur
