// Pairs of a model and the one grown from it.
#pragma once

#include <string>
#include <vector>

#include "src/train/growth/grow_model.h"
#include "tests/unit/model/fixture.h"

namespace amur::test {

// 2 layers, width 24, 4 heads of 6, feed-forward 40, projection 10: that of the numerical checks
// behind docs/growth.md, with eps large enough to matter.
ModelConfig small_config();
// Texts of one token and of as many as there are positions; others for another number.
TestChunk probe_chunk(const ModelConfig& config, int which = 0);

// A model with parameters from counters.
class TestModel {
 public:
  TestModel(const ModelConfig& config, DType dtype);
  TestModel(const Growth& growth, TestModel& from);  // grown
  TestModel(TestModel& whole, Communicator& tp);     // the same, shared by a group
  TestModel(const TestModel&) = delete;              // modules refer to its parameters
  // h [S, e] of the tower, not normalised.
  std::vector<double> forward(const TestChunk& chunk, int tower = 0);
  // Gradients of sum w.h into sinks; w is a function of text and coordinate.
  void backward(const TestChunk& chunk);

  Config config;
  EmbeddingModel model;
  std::vector<Tensor> sinks;

 private:
  Context context(const TestChunk& chunk, bool keep);

  Bench bench_;  // stacks and contexts
};

// A part of a whole tensor; the RMS of one as growth takes it.
Tensor cut(ConstTensorView whole, const Slab& slab);
double rms_by_boxes(ConstTensorView whole);
// Whole tensors of optimizer state, as Growth::widen_moment_block does parts.
void widen_moment(const Growth& growth, const GrowthRule& rule, const Parameter* from,
                  ConstTensorView old, int order, const Parameter& to, TensorView state);

Config config_of(const ModelConfig& model);
Precision precision_of(DType dtype);

// `from` grown as `options` say, which must change something.
TestModel grow(TestModel& from, const GrowthOptions& options);

// Of unit rows of width e: largest difference of elements; of the cosine matrices.
std::vector<double> unit_rows(const std::vector<double>& h, int64_t width);
double largest_difference(const std::vector<double>& a, const std::vector<double>& b);
double cosine_difference(const std::vector<double>& a, int64_t a_width,
                         const std::vector<double>& b, int64_t b_width);

}  // namespace amur::test
