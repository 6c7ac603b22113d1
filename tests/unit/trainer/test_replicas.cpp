// Copies that are no longer equal are found, named, and end the run on every rank.
#include <gtest/gtest.h>

#include "src/train/replica_check.h"
#include "tests/support/mpi_runtime.h"

namespace amur {
namespace {

void add_parameter(ParameterSet& set, const std::string& name, ParamKind kind, int64_t rows,
                   int axis) {
  Parameter p;
  p.name = name;
  p.kind = kind;
  p.axes = {{rows, AxisRole::fixed}, {6, AxisRole::model}};
  p.sharding.axis = axis;
  p.init = {Initializer::Kind::normal, 1};
  set.add(std::move(p));
}

// The state of a run after a step: an embedding, weights sharded on either axis, one replicated.
class State {
 public:
  explicit State(ProcessGrid& grid) : grid_(grid) {
    add_parameter(parameters, "tokens", ParamKind::embedding, 11, 0);
    add_parameter(parameters, "up", ParamKind::weight, 9, 0);
    add_parameter(parameters, "down", ParamKind::weight, 4, 1);
    add_parameter(parameters, "projection", ParamKind::weight, 5, -1);
    const int tp_rank = grid.tp_rank(), tp_size = grid.shape().tp;
    parameters.allocate(DType::f32, Device::cpu(), tp_rank, tp_size);
    parameters.initialise(3, tp_rank, tp_size);
    optimizer = Optimizer::make({}, parameters, 0.01, &grid.tp());
    Tensor bitmap = Tensor::zeros({parameters[0].value.shape()[0]}, DType::u8);
    for (int64_t r = 0; r < bitmap.elements(); r += 2) bitmap.as<uint8_t>()[r] = 1;
    std::vector<TensorView> touched = {bitmap};
    optimizer->begin_step(0, 1, touched, grid.dp());
    for (int64_t r = 0; r < bitmap.elements(); r += 2) parameters[0].sink.as<float>()[6 * r] += 1;
    for (size_t i = 1; i < parameters.size(); ++i) parameters[i].sink.as<float>()[0] += 1;
    optimizer->finish_step(0, 0.01, grid.dp());
  }
  std::string check() {
    try {
      require_equal_replicas(parameters, optimizer->slots(), optimizer->name(), 20, grid_);
    } catch (const NumericError& e) {
      return e.what();
    }
    return "";
  }

  ParameterSet parameters;
  std::unique_ptr<Optimizer> optimizer;

 private:
  ProcessGrid& grid_;
};

TEST(Replicas, OneChangedBitIsFoundAndNamed) {
  const int ranks = test_runtime().size();
  for (int tp = 1; tp <= std::min(ranks, 6); ++tp) {
    if (ranks % tp != 0) continue;
    ProcessGrid grid(test_runtime(), {ranks / tp, tp});
    State state(grid);
    EXPECT_EQ(state.check(), "");
    std::vector<std::pair<std::string, TensorView>> tensors;  // and whether they are replicated
    std::vector<bool> replicated;
    for (Parameter& p : state.parameters) {
      tensors.emplace_back("/model/" + p.name, p.value);
      replicated.push_back(p.sharding.axis < 0);
    }
    for (const OptimizerSlot& slot : state.optimizer->slots()) {
      tensors.emplace_back("/optimizer/tiger/" + slot.slot + "/" + slot.parameter->name,
                           slot.value);
      replicated.push_back(slot.parameter->sharding.axis < 0);
    }
    const int culprit = ranks - 1;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto& [name, view] = tensors[i];
      auto* last = static_cast<uint8_t*>(view.raw()) + view.bytes() - 1;
      if (grid.world().rank() == culprit) *last ^= 1;
      const std::string text = state.check();
      // With one rank that holds it, there is nothing to compare.
      const int copies = replicated[i] ? ranks : ranks / tp;
      if (copies == 1) {
        EXPECT_EQ(text, "") << name;
      } else {
        EXPECT_NE(text.find("step 20: the copies of " + name + " are no longer equal: rank"),
                  std::string::npos)
            << text;
        EXPECT_NE(text.find(fmt::format("rank {} (dp {}, tp {}) differs from rank", culprit,
                                        culprit / tp, culprit % tp)),
                  std::string::npos)
            << text;
      }
      if (grid.world().rank() == culprit) *last ^= 1;
      EXPECT_EQ(state.check(), "");
    }
  }
}

}  // namespace
}  // namespace amur
