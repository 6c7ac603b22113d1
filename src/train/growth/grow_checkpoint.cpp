#include "src/train/growth/grow_checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "src/train/agreement.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kBlock = int64_t{1} << 20;  // elements of a tensor in memory
constexpr const char* kSecondMoment = "second_moment";
constexpr int64_t kNever = -1;  // step of a row that no step has touched

const char* split_name(GrowthSplit split) {
  switch (split) {
    case GrowthSplit::even:
      return "even";
    case GrowthSplit::noise:
      return "noise";
    case GrowthSplit::uneven:
      return "uneven";
  }
  return "?";
}

Json sizes_of(const ModelConfig& m) {
  return {{"hidden", m.hidden},
          {"heads", m.heads},
          {"head_size", m.resolved_head_size()},
          {"ffn", m.resolved_ffn()},
          {"layers", m.layers},
          {"vocab", m.vocab},
          {"max_length", m.max_length},
          {"positions", m.resolved_positions()},
          {"projection", m.projection}};
}

// Of one value a row: the old rows, then new ones.
GrowthBlock block_of_rows(const Slab& part, int64_t old_rows) {
  const int64_t first = std::min(part.first[0], old_rows),
                last = std::min(part.first[0] + part.count[0], old_rows);
  return {part, {Shape{first}, Shape{last - first}}};
}

// Reads a block, of bf16 widened, and returns its check sum as stored.
uint64_t read_block(const Hdf5File& file, const StoredTensor& tensor, const Shape& first,
                    TensorView values) {
  const DType stored = file.info(tensor.path).dtype;
  Tensor narrow;
  if (stored == DType::bf16)
    narrow = Tensor(values.shape(), stored);
  else if (stored != values.dtype())
    throw IoError("'{}': {} holds {}, wanted {}", file.path(), tensor.path, name_of(stored),
                  name_of(values.dtype()));
  const TensorView read = narrow.defined() ? narrow.view() : values;
  file.read(tensor.path, first, read);
  if (narrow.defined()) cast(narrow, values);
  return checksum_of(read, first, tensor.global);
}

// Memory that is used again for each block.
class Scratch {
 public:
  TensorView view(const Shape& shape, DType dtype) {
    const int64_t bytes = shape.elements() * static_cast<int64_t>(size_of(dtype));
    if (!memory_.defined() || memory_.elements() < bytes)
      memory_ = Tensor(Shape{std::max<int64_t>(bytes, 1)}, DType::u8);
    return {memory_.view().raw(), shape, dtype};
  }

 private:
  Tensor memory_;
};

}  // namespace

int64_t GrownCheckpoint::bytes_of(const std::vector<StoredTensor>& tensors) {
  int64_t bytes = 0;
  for (const StoredTensor& t : tensors)
    bytes += t.global.elements() * static_cast<int64_t>(size_of(t.value.dtype()));
  return bytes;
}

GrownCheckpoint::GrownCheckpoint(std::string input, const CheckpointInfo& info,
                                 const Config& config, const Growth& growth, ProcessGrid& grid,
                                 Runtime& runtime)
    : input_(std::move(input)),
      config_(config),
      grown_config_(grown_config(config, growth)),
      growth_(growth),
      grid_(grid),
      runtime_(runtime),
      from_(EmbeddingModel::outline(config_, config_.train.precision)),
      to_(EmbeddingModel::outline(grown_config_, config_.train.precision)),
      old_constants_(info.constants),
      seed_(info.seed) {
  Checkpoint::load_rules(input_, from_->parameters(), grid_);
  from_->set_constants(info.constants);
  widen_outline(growth_, *from_, *to_);
  old_optimizer_ = Optimizer::make(config_.optimizer, from_->parameters());
  optimizer_ = Optimizer::make(grown_config_.optimizer, to_->parameters());
  old_slots_ = old_optimizer_->slots();
  slots_ = optimizer_->slots();
  if (info.optimizer.empty()) {  // a model that was imported, and not trained since
    old_slots_.clear();
    slots_.clear();
  }
  const DType dtype = from_->parameters_dtype();
  old_tensors_ = outlined_tensors(from_->parameters(), old_slots_, info.optimizer, dtype);
  tensors_ = outlined_tensors(to_->parameters(), slots_, info.optimizer, dtype);
}

GrownCheckpoint::~GrownCheckpoint() = default;

// Each rank reads some boxes of each tensor.
std::vector<double> GrownCheckpoint::read_input() {
  Communicator& world = grid_.world();
  const auto rank = static_cast<size_t>(world.rank()), ranks = static_cast<size_t>(world.size());
  std::vector<uint64_t> local(old_tensors_.size(), 0), stored;
  std::vector<std::vector<double>> squares(from_->parameters().size());
  on_every_rank(world, [&] {
    require_tensors(*file_, old_tensors_);
    Scratch scratch;
    for (size_t i = 0; i < old_tensors_.size(); ++i) {
      const StoredTensor& t = old_tensors_[i];
      runtime_.set_phase(fmt::format("reading {}", t.path));
      stored.push_back(file_->attribute_as<uint64_t>(t.path, kChecksumAttribute));
      const std::vector<Slab> boxes = statistics_boxes(t.global);
      if (i < squares.size()) squares[i].assign(boxes.size(), 0);
      for (size_t b = rank; b < boxes.size(); b += ranks) {
        const TensorView values = scratch.view(boxes[b].count, t.value.dtype());
        local[i] += read_block(*file_, t, boxes[b].first, values);
        if (i < squares.size()) squares[i][b] = sum_of_squares_of(values);
        runtime_.advance();
      }
    }
  });
  const std::vector<uint64_t> found = sum_over_ranks(world, local);
  for (size_t i = 0; i < old_tensors_.size(); ++i)
    if (found[i] != stored[i])
      throw IoError("{}", damage_text(input_, old_tensors_[i].path, stored[i], found[i]));
  std::vector<double> rms;
  for (size_t i = 0; i < squares.size(); ++i) {
    // Each box is one rank's, so the sum over ranks rounds nothing.
    const TensorView view(squares[i].data(), Shape{static_cast<int64_t>(squares[i].size())},
                          DType::f64);
    world.all_reduce(view, ReduceOp::sum);
    world.synchronize();
    rms.push_back(root_mean_square_of(squares[i], old_tensors_[i].global.elements()));
  }
  return rms;
}

// Of a parameter (no slot), or its state of the same kind; null where there is none.
const StoredTensor* GrownCheckpoint::old_tensor(const Parameter* from,
                                                const OptimizerSlot* slot) const {
  const size_t parameters = from_->parameters().size();
  for (size_t i = 0; i < old_tensors_.size(); ++i) {
    const bool same_kind = slot == nullptr
                               ? i < parameters
                               : i >= parameters && old_slots_[i - parameters].slot == slot->slot;
    if (same_kind && old_tensors_[i].parameter == from) return &old_tensors_[i];
  }
  return nullptr;
}

void GrownCheckpoint::write_tensor(size_t i, const std::vector<double>& rms_of_old) {
  const StoredTensor& t = tensors_[i];
  const size_t parameters = to_->parameters().size();
  const OptimizerSlot* slot = i < parameters ? nullptr : &slots_[i - parameters];
  const GrowthRule rule = growth_.rule(*t.parameter, from_->parameters());
  const Parameter* from = from_->parameters().find(rule.source);
  const StoredTensor* old = from == nullptr ? nullptr : old_tensor(from, slot);
  const double rms = old == nullptr || slot != nullptr
                         ? 0
                         : rms_of_old[static_cast<size_t>(old - old_tensors_.data())];
  const bool per_row = slot != nullptr && slot->per_row;
  if (per_row && old == nullptr)
    throw IoError("'{}' holds no {} of {}", input_, slot->slot, rule.source);

  std::vector<GrowthBlock> blocks;
  if (per_row)
    for (const Slab& part : boxes_of(t.global, kBlock))
      blocks.push_back(block_of_rows(part, old->global[0]));
  else
    blocks = growth_.blocks(from, *t.parameter, kBlock);

  const auto fill = [&](const GrowthBlock& block, ConstTensorView before, TensorView values) {
    if (per_row) {
      std::fill_n(values.as<int64_t>(), values.elements(), kNever);
      std::copy_n(before.as<int64_t>(), before.elements(), values.as<int64_t>());
    } else if (slot != nullptr) {
      growth_.widen_moment_block(rule, from, block, before, slot->slot == kSecondMoment ? 2 : 1,
                                 *t.parameter, values);
    } else if (!growth_.widen_block(rule, from, rms, block, before, *t.parameter, values)) {
      fill_initial(*t.parameter, block.to, seed_, values);
    }
  };
  Communicator& world = grid_.world();
  const auto ranks = static_cast<size_t>(world.size());
  Scratch old_scratch, scratch;
  for (size_t first = 0; first < blocks.size(); first += ranks) {
    output_->write(i, [&]() -> CheckpointOutput::Part {
      const size_t mine = first + static_cast<size_t>(world.rank());
      if (mine >= blocks.size())
        return {t.slab.first, ConstTensorView(nullptr, Shape{0}, t.value.dtype())};
      const GrowthBlock& block = blocks[mine];
      TensorView before;
      if (old != nullptr) {
        before = old_scratch.view(block.from.count, t.value.dtype());
        read_block(*file_, *old, block.from.first, before);
      }
      const TensorView values = scratch.view(block.to.count, t.value.dtype());
      fill(block, before, values);
      return {block.to.first, values};
    });
    runtime_.advance();
  }
}

void GrownCheckpoint::write(const std::string& output, CheckpointInfo info,
                            const FileOptions& options) {
  Communicator& world = grid_.world();
  on_every_rank(world, [&] { file_ = std::make_unique<Hdf5File>(input_, Hdf5File::Mode::read); });
  const std::vector<double> rms = read_input();
  info.constants = to_->constants();
  info.world_size = world.size();
  info.dp = grid_.shape().dp;
  info.tp = grid_.shape().tp;
  output_ = std::make_unique<CheckpointOutput>(output, info, tensors_, options, world);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    runtime_.set_phase(fmt::format("writing {}", tensors_[i].path));
    write_tensor(i, rms);
  }
  output_->close();
  file_.reset();
  runtime_.set_phase("reading the new checkpoint back");
  output_->verify([&](size_t i) {
    // Those of the next rank, dealt out as they were written.
    const std::vector<Slab> boxes = statistics_boxes(tensors_[i].global);
    const auto ranks = static_cast<size_t>(world.size());
    std::vector<Slab> mine;
    for (size_t b = (static_cast<size_t>(world.rank()) + 1) % ranks; b < boxes.size(); b += ranks)
      mine.push_back(boxes[b]);
    return mine;
  });
}

ProbeEmbeddings GrownCheckpoint::embed(const std::string& path, const Config& config,
                                       const std::map<std::string, double>& constants,
                                       const ProbePairs& probe, const Tokenizer& tokenizer,
                                       ProcessGrid& grid) {
  constexpr int64_t kChunkTokens = 512;  // few, so that activations are small beside the weights
  EmbeddingModel model(config, config.train.precision, &grid.tp());
  Checkpoint::load(path, model.parameters(), {}, grid, Checkpoint::Wanted::unpublished);
  model.set_constants(constants);
  // Both models see the same texts, cut at the old length.
  Config texts = config_;
  texts.eval.chunk_tokens = kChunkTokens;
  return embed_probe(model, tokenizer, texts, probe, grid.dp(), runtime_);
}

GrowthProof GrownCheckpoint::prove(const ProbePairs& probe, const Tokenizer& tokenizer,
                                   ProcessGrid& grid) {
  runtime_.set_phase("comparing the two models");
  const ProbeEmbeddings before = embed(input_, config_, old_constants_, probe, tokenizer, grid);
  const ProbeEmbeddings after =
      embed(output_->temporary_path(), grown_config_, to_->constants(), probe, tokenizer, grid);
  return compare_embeddings(before, after, from_->parameters_dtype());
}

GrownCheckpoint::Outcome GrownCheckpoint::grow(const std::string& output, const Content& content,
                                               const std::optional<ProbePairs>& probe,
                                               const Tokenizer& tokenizer,
                                               ProcessGrid& proof_grid) {
  constexpr size_t kRoomForProof = 1024;
  Outcome outcome;
  CheckpointInfo info = content.info;
  info.lineage.push_back(content.ancestor + std::string(kRoomForProof, ' '));
  write(output, std::move(info), content.file);
  Json ancestor = Json::parse(content.ancestor);
  ancestor["proof"] = "skipped";
  if (probe) {
    outcome.proof = prove(*probe, tokenizer, proof_grid);
    ancestor["proof"] = Json::parse(to_json(*outcome.proof));
  }
  if (!outcome.proof || outcome.proof->pass()) {
    runtime_.set_phase("publishing the checkpoint");
    output_->set_newest_ancestor(ancestor.dump());
    output_->publish();
    outcome.written = true;
  }
  output_.reset();
  return outcome;
}

std::string ancestor_text(const std::string& source, const Growth& growth, int64_t step,
                          int64_t parameters_before, int64_t parameters_after) {
  Json j{{"widened_from", source},
         {"step", step},
         {"from", sizes_of(growth.from())},
         {"to", sizes_of(growth.to())},
         {"parameters_before", parameters_before},
         {"parameters_after", parameters_after},
         {"split", split_name(growth.options().split)},
         {"seed", growth.options().seed}};
  if (growth.options().split == GrowthSplit::noise) j["noise_db"] = growth.options().noise_db;
  if (growth.options().head_growth == HeadGrowth::copies) j["head_growth"] = "copies";
  if (growth.options().old_statistics) j["old_statistics"] = true;
  j["fixed_projection"] = growth.to().projection != growth.from().projection;
  return j.dump();
}

int ranks_to_share(double bytes, double available, int ranks_of_machine, int ranks) {
  for (int share = 1; share <= ranks_of_machine; ++share) {
    if (ranks_of_machine % share != 0 || ranks % share != 0) continue;
    if (bytes * (ranks_of_machine / share) <= available) return share;
  }
  return 0;
}

}  // namespace amur
