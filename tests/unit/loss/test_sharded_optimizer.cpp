// Optimizers at every grid of the ranks at hand against one rank: parameters, state and norm.
#include <gtest/gtest.h>

#include "comm/process_grid.h"
#include "src/core/hash.h"
#include "tests/support/mpi_runtime.h"
#include "tests/unit/loss/optimizer_fixture.h"

namespace amur {
namespace {

// f(local element, element of the whole tensor)
template <class F>
void for_each_local(const Parameter& p, int tp_rank, int tp_size, const F& f) {
  for_each_element(slab_of(p, tp_rank, tp_size), p.global_shape(), f);
}

constexpr int64_t kTokens = 13, kSteps = 10, kSamples = 6;

Parameter empty_parameter(const std::string& name, ParamKind kind,
                          const std::vector<int64_t>& sizes, int axis) {
  Parameter p;
  p.name = name;
  p.kind = kind;
  for (int64_t s : sizes) p.axes.push_back({s, AxisRole::fixed});
  p.sharding.axis = axis;
  return p;
}

// Sharded on axes 0 and 1 and not at all; no size divides evenly. In f64, or as `state` says.
void add_parameters(ParameterSet& set, int tp_rank, int tp_size,
                    StatePrecision state = StatePrecision::fp32) {
  set.add(empty_parameter("tokens", ParamKind::embedding, {kTokens, 5}, 0));
  set.add(empty_parameter("positions", ParamKind::embedding, {7, 5}, -1));
  set.add(empty_parameter("up", ParamKind::weight, {11, 7}, 0));
  set.add(empty_parameter("up.bias", ParamKind::bias, {11}, 0));
  set.add(empty_parameter("down", ParamKind::weight, {7, 11}, 1));
  set.add(empty_parameter("projection", ParamKind::weight, {3, 7}, -1));
  set.add(empty_parameter("gain", ParamKind::gain, {7}, -1));
  set.add(empty_parameter("scale", ParamKind::scalar, {1}, -1));
  if (state == StatePrecision::fp32)
    set.allocate(DType::f64, Device::cpu(), tp_rank, tp_size);
  else
    set.allocate(DType::f32, DType::bf16, Device::cpu(), tp_rank, tp_size);
  for (Parameter& p : set) {
    const RandomKey key = RandomKey(3).fold(fnv1a(p.name));
    // A weight whose parts differ in size: an RMS over one of them would be seen.
    for_each_local(p, tp_rank, tp_size, [&](int64_t local, int64_t global) {
      const double x =
          0.1 * key.normal(static_cast<uint64_t>(global)) * (1 + static_cast<double>(global));
      dispatch_float(p.value.dtype(), "add_parameters", [&]<class T>() {
        p.value.as<T>()[local] = static_cast<T>(static_cast<AccumulateType<T>>(x));
      });
    });
  }
}

bool row_touched(size_t table, int64_t row, int64_t step, int64_t sample) {
  return mix64(table * 1000003 + static_cast<uint64_t>(row * 10007 + step * 101 + sample)) % 5 == 0;
}

// A run of kSteps on one grid; `tp` may be left out, as a mistake. Gradients are multiples of 1/4
// where the state is not f64: with a beta of 1/2 all sums are exact then.
struct OptimizerRun {
  OptimizerRun(const OptimizerConfig& config, Communicator& dp, Communicator& tp,
               bool leave_out_tp = false)
      : tp_rank(tp.rank()), tp_size(tp.size()), exact_sums(config.state != StatePrecision::fp32) {
    add_parameters(parameters, tp_rank, tp_size, config.state);
    optimizer = Optimizer::make(config, parameters, 0.01, leave_out_tp ? nullptr : &tp);
    for (int64_t step = 0; step < kSteps; ++step) one_step(step, dp);
  }

  void one_step(int64_t step, Communicator& dp) {
    std::vector<Tensor> bitmaps;
    const auto touched = [&](size_t i, int64_t global, int64_t sample) {
      return parameters[i].kind != ParamKind::embedding || row_touched(i, global / 5, step, sample);
    };
    for (size_t i = 0; i < 2; ++i) {
      const Parameter& p = parameters[i];
      bitmaps.push_back(Tensor::zeros({p.value.shape()[0]}, DType::u8));
      for (int64_t s = dp.rank(); s < kSamples; s += dp.size())
        for_each_local(p, tp_rank, tp_size, [&](int64_t local, int64_t global) {
          if (touched(i, global, s)) bitmaps[i].as<uint8_t>()[local / 5] = 1;
        });
    }
    std::vector<TensorView> views(bitmaps.begin(), bitmaps.end());
    optimizer->begin_step(step, 1, views, dp);
    for (int64_t s = dp.rank(); s < kSamples; s += dp.size())
      for (size_t i = 0; i < parameters.size(); ++i)
        for_each_local(parameters[i], tp_rank, tp_size, [&](int64_t local, int64_t global) {
          if (!touched(i, global, s)) return;
          const double g = gradient(i, global, step, s);
          add_to_sink(parameters[i], local, exact_sums ? std::round(4 * g) / 4 : g);
        });
    optimizer->finish_step(step, 0.01, dp);
    norms.push_back(optimizer->last_gradient_norm());
  }

  int tp_rank, tp_size;
  bool exact_sums;
  ParameterSet parameters;
  std::unique_ptr<Optimizer> optimizer;
  std::vector<double> norms;
};

// The largest difference of this rank's parameters, slots and norms from those of the whole run.
double difference(OptimizerRun& run, OptimizerRun& whole) {
  double largest = 0;
  const auto compare = [&](const Parameter& p, ConstTensorView part, ConstTensorView all) {
    const std::vector<double> own = values(part), expected = values(all);
    for_each_local(p, run.tp_rank, run.tp_size, [&](int64_t local, int64_t global) {
      largest = std::max(largest, std::abs(own[static_cast<size_t>(local)] -
                                           expected[static_cast<size_t>(global)]));
    });
  };
  for (size_t i = 0; i < run.parameters.size(); ++i)
    compare(run.parameters[i], run.parameters[i].value, whole.parameters[i].value);
  const std::vector<OptimizerSlot> slots = run.optimizer->slots();
  const std::vector<OptimizerSlot> expected = whole.optimizer->slots();
  EXPECT_EQ(slots.size(), expected.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    if (!slots[i].per_row) {
      compare(*slots[i].parameter, slots[i].value, expected[i].value);
      continue;
    }
    const int64_t first = slab_of(*slots[i].parameter, run.tp_rank, run.tp_size).first[0];
    for (int64_t r = 0; r < slots[i].value.elements(); ++r)
      EXPECT_EQ(slots[i].value.as<int64_t>()[r], expected[i].value.as<int64_t>()[first + r]);
  }
  for (size_t t = 0; t < run.norms.size(); ++t)
    largest = std::max(largest, std::abs(run.norms[t] - whole.norms[t]));
  return largest;
}

std::vector<OptimizerConfig> configs() {
  std::vector<OptimizerConfig> all(4);
  for (OptimizerConfig& c : all) c.weight_decay = 0.1;
  all[1].embedding_rows = EmbeddingRows::dense;
  all[2].kind = OptimizerKind::adamw;
  all[3].kind = OptimizerKind::lion;
  return all;
}

template <class F>
void for_each_grid(const F& f) {
  const int ranks = test_runtime().size();
  for (int tp = 1; tp <= ranks; ++tp)
    if (ranks % tp == 0) {
      SCOPED_TRACE(fmt::format("dp {} x tp {}", ranks / tp, tp));
      ProcessGrid grid(test_runtime(), {ranks / tp, tp});
      f(grid);
    }
}

TEST(ShardedOptimizer, TenStepsEqualOneRank) {
  ProcessGrid wide(test_runtime(), {test_runtime().size(), 1});
  Communicator& self = wide.tp();  // a group of one
  for (const OptimizerConfig& config : configs()) {
    OptimizerRun whole(config, self, self);
    for_each_grid([&](ProcessGrid& grid) {
      OptimizerRun run(config, grid.dp(), grid.tp());
      EXPECT_LE(difference(run, whole), 1e-13) << run.optimizer->name();
      for (const Parameter& p : run.parameters) {
        EXPECT_TRUE(same_on_all_ranks(p.value, grid.dp())) << p.name;
        if (p.sharding.axis < 0) {
          EXPECT_TRUE(same_on_all_ranks(p.value, grid.world())) << p.name;
        }
      }
    });
  }
}

std::vector<OptimizerConfig> configs_in_bf16() {
  std::vector<OptimizerConfig> all = configs();
  for (OptimizerConfig& c : all) {
    c.state = StatePrecision::bf16_weights;
    c.beta = 0.5;
  }
  return all;
}

// The noise of the rounding belongs to the tensor and the step, so that weights in bf16 are the same
// bits at every grid where the sums of the gradients are.
TEST(ShardedOptimizer, WeightsInBf16AreTheSameBitsAtEveryGrid) {
  ProcessGrid wide(test_runtime(), {test_runtime().size(), 1});
  Communicator& self = wide.tp();
  for (const OptimizerConfig& config : configs_in_bf16()) {
    OptimizerRun whole(config, self, self);
    for_each_grid([&](ProcessGrid& grid) {
      OptimizerRun run(config, grid.dp(), grid.tp());
      EXPECT_LE(difference(run, whole), 1e-12) << run.optimizer->name();
      for (const Parameter& p : run.parameters) {
        EXPECT_EQ(p.value.dtype(), p.is_matrix() ? DType::bf16 : DType::f32) << p.name;
        EXPECT_TRUE(same_on_all_ranks(p.value, grid.dp())) << p.name;
      }
    });
  }
}

// The mistake that must show: noise by the local place. AdamW asks its group for nothing else.
TEST(ShardedOptimizer, LocalNoiseIsSeen) {
  ProcessGrid wide(test_runtime(), {test_runtime().size(), 1});
  Communicator& self = wide.tp();
  OptimizerRun whole(configs_in_bf16()[2], self, self);
  for_each_grid([&](ProcessGrid& grid) {
    if (grid.shape().tp == 1) return;
    OptimizerRun run(configs_in_bf16()[2], grid.dp(), grid.tp(), true);
    double largest = 0;
    for (const size_t i : {2, 4}) {
      const std::vector<double> own = values(run.parameters[i].value),
                                expected = values(whole.parameters[i].value);
      for_each_local(run.parameters[i], run.tp_rank, run.tp_size,
                     [&](int64_t local, int64_t global) {
                       largest = std::max(largest, std::abs(own[static_cast<size_t>(local)] -
                                                            expected[static_cast<size_t>(global)]));
                     });
    }
    EXPECT_GT(grid.tp().max(static_cast<int64_t>(largest * 1e6)), 0);
  });
}

// Momenta in bf16 are rounded where they are written, which depends on the grid, but all copies are
// rounded alike.
TEST(ShardedOptimizer, MomentaInBf16AreEqualOnAllRanks) {
  ProcessGrid wide(test_runtime(), {test_runtime().size(), 1});
  Communicator& self = wide.tp();
  OptimizerConfig config = configs()[0];
  config.state = StatePrecision::bf16;
  OptimizerConfig in_f32 = config;
  in_f32.state = StatePrecision::bf16_weights;
  OptimizerRun whole(in_f32, self, self);
  for_each_grid([&](ProcessGrid& grid) {
    OptimizerRun run(config, grid.dp(), grid.tp());
    for (const OptimizerSlot& slot : run.optimizer->slots()) {
      EXPECT_TRUE(same_on_all_ranks(slot.value, grid.dp())) << slot.parameter->name;
      if (!slot.per_row) {
        EXPECT_EQ(slot.value.dtype(), slot.parameter->is_matrix() ? DType::bf16 : DType::f32);
      }
    }
    for (const Parameter& p : run.parameters)
      EXPECT_TRUE(same_on_all_ranks(p.value, grid.dp())) << p.name;
    for (size_t t = 0; t < run.norms.size(); ++t)
      EXPECT_NEAR(run.norms[t], whole.norms[t], 0.01 * whole.norms[t]);
  });
}

// The mistake that must show: an RMS, or a norm, over the local part.
TEST(ShardedOptimizer, LocalSumsAreSeen) {
  ProcessGrid wide(test_runtime(), {test_runtime().size(), 1});
  Communicator& self = wide.tp();
  OptimizerRun whole(configs()[0], self, self);
  for_each_grid([&](ProcessGrid& grid) {
    if (grid.shape().tp == 1) return;
    OptimizerRun run(configs()[0], grid.dp(), grid.tp(), true);
    double weights = 0;
    for (size_t i : {2, 4})
      for_each_local(
          run.parameters[i], run.tp_rank, run.tp_size, [&](int64_t local, int64_t global) {
            weights = std::max(weights, std::abs(run.parameters[i].value.as<double>()[local] -
                                                 whole.parameters[i].value.as<double>()[global]));
          });
    EXPECT_GT(weights, 1e-3);
    EXPECT_GT(std::abs(run.norms.back() - whole.norms.back()), 1e-3);
  });
}

TEST(ShardedOptimizer, NonFiniteIsAgreedOverTheGrid) {
  for_each_grid([](ProcessGrid& grid) {
    for (const OptimizerConfig& config : configs()) {
      ParameterSet parameters;
      add_parameters(parameters, grid.tp_rank(), grid.shape().tp);
      const auto optimizer = Optimizer::make(config, parameters, 0.01, &grid.tp());
      std::vector<Tensor> bitmaps;
      for (size_t i = 0; i < 2; ++i)
        bitmaps.push_back(Tensor::zeros({parameters[i].value.shape()[0]}, DType::u8));
      std::vector<TensorView> views(bitmaps.begin(), bitmaps.end());
      optimizer->begin_step(0, 1, views, grid.dp());
      if (grid.world().rank() == grid.world().size() - 1)
        add_to_sink(parameters[4], 0, std::numeric_limits<double>::quiet_NaN());
      std::string text;
      try {
        optimizer->finish_step(0, 0.01, grid.dp());
      } catch (const NumericError& e) {
        text = e.what();
      }
      EXPECT_NE(text.find("the gradient of down is not finite on dp rank " +
                          std::to_string(grid.shape().dp - 1)),
                std::string::npos)
          << text;
      if (grid.shape().tp > 1) {
        EXPECT_NE(text.find(fmt::format(", tp rank {};", grid.shape().tp - 1)), std::string::npos)
            << text;
      }
    }
  });
}

}  // namespace
}  // namespace amur
