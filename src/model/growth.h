// Lossless widening: a larger encoder that computes the same function (docs/growth.md).
//
// What happens to a tensor follows from its kind and the roles of its axes, never from its name. A
// parameter is a matrix [outputs, inputs]: a weight reads its last axis (or the pair heads, head),
// every other kind has no inputs. With W the old tensor, s(o) the old place of output o and c(i)
// that of input i:
//
//   W~[o, i] = scale(o) W[s(o), c(i)] p(i),  sum of p over the copies of one old input = 1
//
// axis        as output                               as input
// model       copies, i mod d; then coordinates that   split over the copies; columns that read
//             stay 0                                   the zero coordinates are random
// heads, ffn  copies, i mod n                          split over the copies
// head        old numbers, then new ones: query 0,     old numbers, then columns of 0
//             key and value random; or m copies each   split over the copies
//             (HeadGrowth::copies); query and key
//             times (h'/h)^(1/4) / sqrt(m)
// vocab,      old rows, then random ones               -
// position
// others      as they are
//
// New layers write nothing: their output matrices are 0 and, under post-norm, the gates of their
// norms.
//
// Where the width is no multiple of the old one (RMSNorm), the copies take r d of D coordinates:
// gains times eta, eps times eta^2, eta^2 = r d / D. LayerNorm takes multiples only, unless its
// statistics stay those of the copies (GrowthOptions::old_statistics).
//
// Sources: archives/8444 of kexue.fm (corrected), LEMON (arXiv 2310.07999), HyperCloning (arXiv
// 2409.12903), Net2Net (arXiv 1511.05641), MSG (arXiv 2305.02869).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/model/encoder.h"
#include "src/model/model_config.h"
#include "src/model/parameter.h"

namespace amur {

enum class GrowthSplit : uint8_t { even, noise, uneven };
// A larger head: its old numbers and new ones that nothing asks for yet, or copies of the old ones.
enum class HeadGrowth : uint8_t { extend, copies };

// Sizes of the grown model; 0: as before.
struct GrowthOptions {
  int64_t hidden = 0, heads = 0, head_size = 0, ffn = 0, layers = 0, vocab = 0, positions = 0;
  HeadGrowth head_growth = HeadGrowth::extend;
  GrowthSplit split = GrowthSplit::noise;
  double noise_db = 10;         // of the split weight over the zero-sum noise that is added to it
  bool projection = true;       // a model without one keeps its embedding size by a fixed average
  bool old_statistics = false;  // LayerNorm: mean and variance of the copies alone, any width
  uint64_t seed = 0;
};

// What is done to one parameter of the grown model.
struct GrowthRule {
  std::string source;      // name of the parameter that it comes from; empty: there is none
  bool new_layer = false;  // of a layer that was not there: inner weights are the source's
  bool silent = false;     // all zero, so that its layer adds nothing
  bool average = false;    // the fixed projection
  bool open_gate = false;  // of an old norm that had none: 1, fixed
  double fan_in = 1;       // new inputs an old one: factor of decay, divisor of the RMS floor
  std::string text;        // for people: "model: 2 copies; heads: split over 2 (noise)"
};

// A part of a grown tensor, and the part of the old one that it is made from (empty where it needs
// nothing of it).
struct GrowthBlock {
  Slab to, from;
};

// RMS of a tensor from the sums of squares of its boxes, in order: the same bits whoever summed
// which box.
std::vector<Slab> statistics_boxes(const Shape& shape);
double sum_of_squares_of(ConstTensorView box);
double root_mean_square_of(std::span<const double> sums, int64_t elements);

class Growth {
 public:
  // `from.vocab` must be set. UsageError for sizes that cannot be reached without changing the
  // function, with the reason, all of them at once.
  Growth(const ModelConfig& from, const GrowthOptions& options);

  const ModelConfig& from() const { return from_; }
  const ModelConfig& to() const { return to_; }
  const GrowthOptions& options() const { return options_; }
  bool changes_nothing() const;
  // Sizes that kernels run slowly or not at all, one a line; empty where there are none.
  std::vector<std::string> warnings() const;

  // Where an old layer stands in the grown model, and the old layer that one of it comes from; a
  // new layer takes its inner weights from the old one behind it. Where layers are local and global
  // by turns, whole turns are put between the old ones and what is left over stands at the end, so
  // that every layer stays of its kind; a new one takes its weights from the same place of a turn.
  int64_t place_of_layer(int64_t old_layer) const;
  struct LayerSource {
    int64_t layer;
    bool is_new;
  };
  LayerSource source_of_layer(int64_t layer) const;
  // What a tensor or constant of the grown model is called in the old one.
  std::string old_name(const std::string& name) const;

  // `to` is a parameter of the grown model; `old` holds those of the old one.
  GrowthRule rule(const Parameter& to, ParameterSet& old) const;
  // How `to` learns: multipliers, RMS floor and frozen flag. `from` is its source, null where the
  // rule names none, here and below.
  void inherit(const GrowthRule& rule, const Parameter* from, Parameter& to) const;
  // `to` in parts of about `elements` numbers, none of which needs more than that of the old tensor
  // (or one row of each; one head, where copies of rotary pairs begin again inside). In row-major
  // order.
  std::vector<GrowthBlock> blocks(const Parameter* from, const Parameter& to,
                                  int64_t elements) const;
  // Fills `values` [block.to.count] from `old` [block.from.count], both f32 or both f64; `rms` is
  // that of the whole old tensor. False, and nothing filled, where the tensor is as initialised.
  bool widen_block(const GrowthRule& rule, const Parameter* from, double rms,
                   const GrowthBlock& block, ConstTensorView old, const Parameter& to,
                   TensorView values) const;
  // The same for a tensor of optimizer state that is a mean of gradients to the power `order` (1: a
  // momentum, 2: AdamW's second moment). Copies of a coordinate have equal shares of its gradient
  // under an even split: 1/m of m copies. `old` may be undefined (no source or frozen): 0.
  void widen_moment_block(const GrowthRule& rule, const Parameter* from, const GrowthBlock& block,
                          ConstTensorView old, int order, const Parameter& to,
                          TensorView state) const;

  // Of the grown model, from that of the old one.
  double constant(ConstantKind kind, double old_value) const;

  // Coordinates of model width that hold copies, r d; the others stay 0.
  int64_t copied_width() const { return copied_; }

 private:
  friend class TensorGrowth;
  void check() const;
  void resolve();
  // The gain of RMSNorm makes up for coordinates that are 0.
  double eta_squared() const {
    if (to_.norm != NormKind::rms) return 1;
    return static_cast<double>(copied_) / static_cast<double>(to_.hidden);
  }

  ModelConfig from_, to_;
  GrowthOptions options_;
  int64_t copied_ = 0;
};

}  // namespace amur
