#include "tests/unit/checkpoint/fixture.h"

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>

namespace amur::test {
namespace {

namespace fs = std::filesystem;

std::string scratch_name() {
  static int count = 0;
  return fmt::format("amur-checkpoint-test-{}-{}", ::getpid(), count++);
}

}  // namespace

Runtime& runtime() {
  static Runtime* instance = new Runtime(nullptr, nullptr);  // must not outlive MPI_Finalize
  return *instance;
}

ScratchFolder::ScratchFolder(Communicator* world) : world_(world) {
  std::string name = scratch_name();
  if (world_) world_->broadcast(name, 0);
  path_ = fs::temp_directory_path() / name;
  fs::create_directories(path_);
  if (world_) world_->barrier();
}

ScratchFolder::~ScratchFolder() {
  if (world_) world_->barrier();
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

SmallModel::SmallModel(ProcessGrid& grid, uint64_t seed, DType dtype, DType matrices) {
  const auto add = [&](std::string name, ParamKind kind, std::vector<Axis> axes, int shard_axis) {
    Parameter p;
    p.name = std::move(name);
    p.kind = kind;
    p.axes = std::move(axes);
    p.sharding.axis = shard_axis;
    p.init = {Initializer::Kind::normal, 1.0};
    parameters.add(std::move(p));
  };
  add("tokens.weight", ParamKind::embedding, {{13, AxisRole::vocab}, {6, AxisRole::model}}, 0);
  add("qkv.weight", ParamKind::weight,
      {{3, AxisRole::fixed}, {4, AxisRole::heads}, {5, AxisRole::head}, {6, AxisRole::model}}, 1);
  add("out.weight", ParamKind::weight,
      {{6, AxisRole::model}, {4, AxisRole::heads}, {5, AxisRole::head}}, 1);
  add("up.weight", ParamKind::weight,
      {{2, AxisRole::fixed}, {2, AxisRole::fixed}, {8, AxisRole::ffn}}, 2);
  add("norm.gain", ParamKind::gain, {{6, AxisRole::model}}, -1);
  add("scale", ParamKind::scalar, {}, -1);
  add("nothing", ParamKind::bias, {{0, AxisRole::fixed}}, -1);
  parameters[0].learning_rate_multiplier = 0.25;
  parameters[4].decay_multiplier = 0;
  parameters[4].rms_floor = 0.125;
  parameters[4].frozen = true;
  const int tp_rank = grid.tp_rank(), tp = grid.shape().tp;
  parameters.allocate(dtype, matrices, Device::cpu(), tp_rank, tp);
  parameters.initialise(seed, tp_rank, tp);

  ParameterSet momentum;
  for (const Parameter& p : parameters) {
    Parameter m;
    m.name = p.name;
    m.kind = p.kind;
    m.axes = p.axes;
    m.sharding = p.sharding;
    m.init = p.init;
    momentum.add(std::move(m));
  }
  momentum.allocate(dtype, matrices, Device::cpu(), tp_rank, tp);
  momentum.initialise(seed + 1000, tp_rank, tp);
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].frozen) continue;
    state_.push_back(std::move(momentum[i].value));
    slots_.push_back({"momentum", &parameters[i], state_.back().view(), false});
  }
  const Slab slab = slab_of(parameters[0], tp_rank, tp);
  state_.emplace_back(Shape{slab.count[0]}, DType::i64);
  for (int64_t r = 0; r < slab.count[0]; ++r)
    state_.back().as<int64_t>()[r] =
        static_cast<int64_t>(seed) * 100 + slab.first[0] + r - 50;  // negative ones too
  slots_.push_back({"last_step", &parameters[0], state_.back().view(), true});
}

std::map<std::string, std::vector<std::byte>> SmallModel::bits() const {
  std::map<std::string, std::vector<std::byte>> all;
  const auto put = [&](const std::string& name, ConstTensorView view) {
    const auto* first = static_cast<const std::byte*>(view.raw());
    all[name].assign(first, first + view.bytes());
  };
  for (const Parameter& p : parameters) put(p.name, p.value);
  for (const OptimizerSlot& s : slots_) put(s.slot + "/" + s.parameter->name, s.value);
  return all;
}

void SmallModel::clear() {
  for (Parameter& p : parameters) fill_zero(p.value);
  for (const OptimizerSlot& s : slots_) fill_zero(s.value);
}

CheckpointInfo example_info(int64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.position = {2, 34, 5678};
  info.seed = 0xfedcba9876543210u;
  info.config_yaml = "model:\n  hidden: 6  # größer\n";
  info.tokenizer["sentencepiece"] = std::string("\x00\x01\xff binary \0", 12);
  info.carried["config.json"] = std::string("{\0}\n", 4);
  info.data_fingerprint = "trans-de-en 1234 abcd";
  info.metrics.columns = {"step", "loss", "eval"};
  info.metrics.values = {{1, 2, 3}, {0.5, 0.25, 0.1}, {std::nan(""), std::nan(""), 0.7}};
  info.measured_choices = {{"attention", "blocked"}, {"gemm/256x256", "3"}};
  info.conditions = {{"grid", "dp 2, tp 1"}, {"threads per rank", "1"}};
  info.best = {{"recall@1", 0.55}, {"step", 5}};
  info.constants = {{"query.norm.eps", 1e-5}};
  info.optimizer = "tiger";
  info.lineage = {R"({"from": "small.h5", "kind": "widen"})", "{}"};
  info.written_by = "amur 0.1.0";
  return info;
}

void expect_equal(const CheckpointInfo& a, const CheckpointInfo& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.position, b.position);
  EXPECT_EQ(a.seed, b.seed);
  EXPECT_EQ(a.config_yaml, b.config_yaml);
  EXPECT_EQ(a.tokenizer, b.tokenizer);
  EXPECT_EQ(a.carried, b.carried);
  EXPECT_EQ(a.data_fingerprint, b.data_fingerprint);
  EXPECT_EQ(a.metrics.columns, b.metrics.columns);
  ASSERT_EQ(a.metrics.values.size(), b.metrics.values.size());
  for (size_t c = 0; c < a.metrics.values.size(); ++c) {
    ASSERT_EQ(a.metrics.values[c].size(), b.metrics.values[c].size());
    for (size_t r = 0; r < a.metrics.values[c].size(); ++r)
      EXPECT_EQ(std::bit_cast<uint64_t>(a.metrics.values[c][r]),
                std::bit_cast<uint64_t>(b.metrics.values[c][r]));
  }
  EXPECT_EQ(a.measured_choices, b.measured_choices);
  EXPECT_EQ(a.conditions, b.conditions);
  EXPECT_EQ(a.best, b.best);
  EXPECT_EQ(a.constants, b.constants);
  EXPECT_EQ(a.optimizer, b.optimizer);
  EXPECT_EQ(a.lineage, b.lineage);
  EXPECT_EQ(a.written_by, b.written_by);
}

std::vector<char> bytes_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace amur::test
