// The encoder shared by a tensor-parallel group against the same encoder on one rank: embeddings
// and every gradient, over the options; and what it is worth, by leaving out one sum at a time.
#include <gtest/gtest.h>

#include <map>

#include "comm/process_grid.h"
#include "comm/trace.h"
#include "src/core/hash.h"
#include "tests/support/mpi_runtime.h"
#include "tests/unit/model/fixture.h"

namespace amur::test {
namespace {

double bound_of(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-6 : 2e-2;
}

// A tensor-parallel group whose all-reduce number `forgotten` (from 0) does nothing.
class ForgetfulGroup final : public Communicator {
 public:
  ForgetfulGroup(Communicator& group, Trace& trace, int forgotten)
      : Communicator(group.rank(), group.size(), "forgetful", &trace),
        group_(group),
        forgotten_(forgotten) {}
  int calls() const { return calls_; }

 private:
  void do_all_reduce(std::span<const TensorView> tensors, ReduceOp op, Stream stream) override {
    if (calls_++ != forgotten_) group_.all_reduce(tensors, op, stream);
  }
  void do_all_gather(ConstTensorView, TensorView, std::span<const int64_t>, Stream) override {}
  void do_reduce_scatter(TensorView, TensorView, std::span<const int64_t>, Stream) override {}
  void do_broadcast(std::span<const TensorView>, int, Stream) override {}
  void do_synchronize(Stream) override {}
  void do_side_sum(std::span<const TensorView>, std::span<const TensorView>, uint64_t) override {}
  Stream do_side_stream(const SideStreamOptions&) override { return {}; }
  void host_barrier() override {}
  void host_all_reduce(TensorView, ReduceOp) override {}
  void host_all_gather(ConstTensorView, TensorView, std::span<const int64_t>) override {}
  void host_broadcast(TensorView, int) override {}

  Communicator& group_;
  int forgotten_, calls_ = 0;
};

// The part of a whole tensor that this rank of the group holds.
std::vector<double> part_of(const std::vector<double>& whole, const Parameter& p,
                            const Communicator& tp) {
  std::vector<double> part;
  for_each_element(slab_of(p, tp.rank(), tp.size()), p.global_shape(),
                   [&](int64_t, int64_t at) { part.push_back(whole[static_cast<size_t>(at)]); });
  return part;
}

double squares_of(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return sum;
}

std::vector<double> difference(std::vector<double> a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

// Of the weights: at 0.3 a few gradients cancel to less than single precision can tell apart.
constexpr double kSpread = 0.2;

struct Errors {
  double output = 0, gradient = 0;
  std::string worst;      // parameter of the largest gradient error
  bool same_bits = true;  // of outputs and replicated gradients on all ranks of the group
};

// Runs the encoder once whole and once shared by `tp`; `through` is `tp` or a group in front of it.
Errors compare(const ModelConfig& config, DType dtype, Communicator& tp, Communicator& through) {
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder whole(config, dtype, 0.035, kSpread);
  Tensor expected = whole.forward(chunk);
  whole.backward(chunk);

  ParameterSet parameters;
  Encoder encoder(config, "encoder", parameters);
  const DType wide = parameter_dtype(dtype);
  parameters.allocate(wide, Device::cpu(), tp.rank(), tp.size());
  std::vector<Tensor> sinks;
  for (size_t i = 0; i < parameters.size(); ++i) {
    Parameter& p = parameters[i];
    const std::vector<double> values = part_of(to_doubles(whole.parameters[i].value), p, tp);
    for (size_t k = 0; k < values.size(); ++k) set(p.value, static_cast<int64_t>(k), values[k]);
    sinks.push_back(Tensor::zeros(p.value.shape(), wide));
    p.sink = sinks.back();
    p.sink_scale = 0.035;
  }
  SavedTensors saved, scratch;
  Context context = whole.context(chunk);
  context.saved = &saved;
  context.scratch = &scratch;
  context.tp = &through;
  Tensor h(expected.shape(), wide);
  encoder.forward(context, h);
  EXPECT_EQ(saved.bytes(), encoder.saved_bytes(10, 3, dtype));
  encoder.backward(context, whole.weights_for(chunk));
  EXPECT_EQ(saved.bytes(), 0u);
  EXPECT_EQ(scratch.bytes(), 0u);

  Errors errors;
  errors.output = relative_error(to_doubles(h), to_doubles(expected));
  const auto same_everywhere = [&](ConstTensorView view) {
    uint64_t hash = 1;
    const auto* bytes = static_cast<const uint8_t*>(view.raw());
    for (size_t k = 0; k < view.bytes(); ++k) hash = mix64(hash + bytes[k]);
    const std::vector<int64_t> all = tp.gather(static_cast<int64_t>(hash));
    return std::equal(all.begin() + 1, all.end(), all.begin());
  };
  errors.same_bits = same_everywhere(h);
  double squares = 0, elements = 0;
  for (const Tensor& sink : whole.sinks) {
    squares += squares_of(to_doubles(sink));
    elements += static_cast<double>(sink.elements());
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    const std::vector<double> want = to_doubles(whole.sinks[i]);
    double wrong = squares_of(difference(to_doubles(sinks[i]), part_of(want, p, tp)));
    wrong = p.sharding.axis >= 0 ? tp.sum(wrong) : tp.max(wrong);
    const double floor = 1e-3 * std::sqrt(static_cast<double>(want.size()) * squares / elements);
    // A gradient that is 0 is all rounding, of terms of the size of the others.
    const double size =
        p.zero_gradient ? 1e3 * floor : std::max(std::sqrt(squares_of(want)), floor);
    if (const double error = std::sqrt(wrong) / size; !(error <= errors.gradient)) {
      errors.gradient = error;
      errors.worst = p.name;
    }
    if (p.sharding.axis < 0) errors.same_bits &= same_everywhere(sinks[i]);
  }
  return errors;
}

// Every group size that divides the ranks of this test.
template <class F>
void for_each_group(const F& f) {
  const int ranks = test_runtime().size();
  for (int tp = 1; tp <= ranks; ++tp)
    if (ranks % tp == 0) {
      ProcessGrid grid(test_runtime(), {ranks / tp, tp});
      f(grid.tp());
    }
}

// 5 heads, 13 tokens and 11 feed-forward units divide by no group.
ModelConfig uneven_config() {
  ModelConfig config = tiny_config();
  config.heads = 5;
  config.ffn = 11;
  return config;
}

TEST(TensorParallel, EqualsOneRankOverOptions) {
  std::map<DType, double> largest;
  for_each_group([&](Communicator& tp) {
    int64_t count = 0;
    for (NormPosition position : {NormPosition::pre, NormPosition::post})
      for (PositionKind positions : {PositionKind::learned, PositionKind::sinusoidal,
                                     PositionKind::rotary, PositionKind::none})
        for (ActivationKind activation : {ActivationKind::gelu, ActivationKind::geglu}) {
          // Without biases, with them, with all of them; with dropout and without.
          const int64_t biases = count % 3;
          const bool dropout = count++ % 4 != 0;
          ModelConfig config = uneven_config();
          config.norm_position = position;
          config.position = positions;
          config.activation = activation;
          config.bias = biases > 0;
          config.key_bias = biases > 1;
          config.projection = biases == 1 ? 5 : 0;
          config.dropout = config.attention_dropout = dropout ? 0.2 : 0;
          if (positions == PositionKind::rotary && is_gated(activation)) {
            config.local_attention = 2;
            config.global_every = 2;
            config.local_rotary_base = 50;
          }
          for (DType dtype : {DType::f64, DType::f32, DType::bf16}) {
            const Errors errors = compare(config, dtype, tp, tp);
            const std::string text =
                fmt::format("{} ranks, {}, post {}, positions {}, gated {}, biases {}, dropout {}",
                            tp.size(), name_of(dtype), position == NormPosition::post,
                            static_cast<int>(positions), is_gated(activation), biases, dropout);
            EXPECT_LE(errors.output, bound_of(dtype)) << text;
            EXPECT_LE(errors.gradient, bound_of(dtype)) << errors.worst << ": " << text;
            EXPECT_TRUE(errors.same_bits) << text;
            largest[dtype] = std::max({largest[dtype], errors.output, errors.gradient});
          }
        }
  });
  for (const auto& [dtype, error] : largest)
    RecordProperty(fmt::format("largest_error_{}", name_of(dtype)), fmt::format("{:.1e}", error));
}

TEST(TensorParallel, StaticModel) {
  for_each_group([](Communicator& tp) {
    ModelConfig config = uneven_config();
    config.layers = 0;
    config.dropout = 0.2;
    for (DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      const Errors errors = compare(config, dtype, tp, tp);
      // Nothing is added up in another order.
      EXPECT_EQ(errors.output, 0) << name_of(dtype);
      EXPECT_EQ(errors.gradient, 0) << errors.worst;
      EXPECT_TRUE(errors.same_bits);
    }
  });
}

// Every sum over the group is needed: without any one of them the comparison fails.
TEST(TensorParallel, NoSumCanBeForgotten) {
  for_each_group([](Communicator& tp) {
    if (tp.size() == 1) return;
    ModelConfig config = uneven_config();
    config.dropout = 0.1;
    Trace trace;
    ForgetfulGroup counting(tp, trace, -1);
    EXPECT_LE(compare(config, DType::f64, tp, counting).gradient, 1e-12);
    // Embedding, attention, feed-forward in the forward; the lookup again in the backward, and each
    // block's input gradient.
    EXPECT_EQ(counting.calls(), 1 + 2 * 2 + 2 * 2 + 1);
    for (int k = 0; k < counting.calls(); ++k) {
      ForgetfulGroup group(tp, trace, k);
      const Errors errors = compare(config, DType::f64, tp, group);
      EXPECT_GT(std::max(errors.output, errors.gradient), 1e-3) << "sum " << k;
    }
  });
}

// A rank's share of the parameters and of what is saved is near 1/tp of them.
TEST(TensorParallel, MemoryIsShared) {
  for_each_group([](Communicator& tp) {
    ModelConfig config = tiny_config();
    config.hidden = 24;
    config.heads = 12;
    config.head_size = 2;
    config.ffn = 96;
    config.vocab = 1200;
    ParameterSet parameters;
    Encoder encoder(config, "encoder", parameters);
    parameters.allocate(DType::f32, Device::cpu(), tp.rank(), tp.size());
    int64_t local = 0, replicated = 0;
    for (const Parameter& p : parameters) {
      local += p.value.elements();
      if (p.sharding.axis < 0) replicated += p.value.elements();
    }
    EXPECT_EQ((local - replicated) * tp.size(), parameters.global_elements() - replicated);
    EXPECT_LT(replicated, parameters.global_elements() / 20);
  });
}

}  // namespace
}  // namespace amur::test
