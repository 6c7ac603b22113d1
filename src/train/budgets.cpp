#include "src/train/budgets.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/core/choices.h"
#include "src/core/gpu.h"
#include "src/core/log.h"
#include "src/core/process.h"
#include "src/train/stopwatch.h"
#include "src/train/two_pass.h"

namespace amur {
namespace {

// Ascending.
constexpr std::array<int64_t, 5> kCpuSizes = {256, 512, 1024, 2048, 4096};
constexpr std::array<int64_t, 6> kGpuSizes = {1024, 2048, 4096, 8192, 16384, kLargestAutoChunk};
constexpr size_t kUnknown = size_t{8} << 30;  // where the system does not tell
constexpr double kForward = 1.0 / 3;          // of the time of a forward and a backward

// Gradients of all parameters go to the same memory, which nobody reads.
class NowhereSinks {
 public:
  explicit NowhereSinks(EmbeddingModel& model) : model_(model) {
    int64_t largest = 0;
    for (const Parameter& p : model.parameters()) largest = std::max(largest, p.value.elements());
    const DType dtype = model.parameters_dtype();
    memory_ = Tensor::zeros({largest}, dtype, model.device());
    for (Parameter& p : model.parameters()) {
      before_.push_back(p.sink);
      p.sink = memory_.view().slice(0, p.value.elements()).reshape(p.value.shape());
    }
  }
  ~NowhereSinks() {
    size_t i = 0;
    for (Parameter& p : model_.parameters()) p.sink = before_[i++];
  }
  NowhereSinks(const NowhereSinks&) = delete;
  NowhereSinks& operator=(const NowhereSinks&) = delete;

 private:
  EmbeddingModel& model_;
  Tensor memory_;
  std::vector<TensorView> before_;
};

void wait_for(Device device) {
  if (device != Device::cpu()) gpu_backend().synchronize(Stream(device));
}

// Bytes that the loss stage and the step's vectors take beside the chunks.
size_t batch_bytes(const Config& config, const EmbeddingModel& model, int dp) {
  const LossExtent extent = loss_extent(config, model, dp);
  const int64_t vectors = 3 * (extent.queries + extent.documents) * extent.width;
  return static_cast<size_t>(vectors) * size_of(extent.dtype) +
         contrastive_loss_bytes(config.loss, extent, model.device()).total();
}

// What this rank may take for activations.
size_t room_for(const BudgetRequest& request, ProcessGrid& grid, Runtime& runtime) {
  const Device device = request.model->device();
  const auto fixed =
      static_cast<double>(batch_bytes(*request.config, *request.model, grid.shape().dp));
  double room = 0;
  // Everybody's model is there once this is known.
  const std::vector<int64_t> devices = grid.node().gather(device.index);
  if (device == Device::cpu()) {
    // Half of what there is: other programs have a say in the rest. Memory that was allocated and
    // not written yet, as that of momenta, still counts as free.
    const size_t available = available_bytes();
    room = 0.5 * static_cast<double>(available > 0 ? available : kUnknown) / runtime.node_size() -
           fixed - static_cast<double>(request.unwritten_bytes);
  } else {
    // A tenth for work space of libraries, and for what their allocator cannot use.
    const auto ranks =
        static_cast<double>(std::count(devices.begin(), devices.end(), device.index));
    // Of steps, and of evaluations beside them.
    const auto copies = 2 * static_cast<double>(StepCopies::bytes_for(request.model->parameters(),
                                                                      request.model->dtype()));
    room = 0.9 * static_cast<double>(gpu_backend().free_bytes(device)) / ranks - fixed - copies;
  }
  return static_cast<size_t>(grid.world().min(static_cast<int64_t>(std::max(0.0, room))));
}

std::string gib_text(double bytes) {
  return bytes < 1e9 ? fmt::format("{:.0f} MiB", bytes / (1 << 20))
                     : fmt::format("{:.1f} GiB", bytes / (1 << 30));
}

}  // namespace

Budgets configured_budgets(const TrainConfig& config, Device device) {
  return {config.chunk_tokens > 0   ? config.chunk_tokens
          : device == Device::cpu() ? 4096
                                    : 16384,
          config.activation_budget >= 0 ? config.activation_budget : int64_t{1} << 30};
}

LossExtent loss_extent(const Config& config, const EmbeddingModel& model, int dp) {
  const int64_t queries = config.train.batch_size;
  const int64_t documents = queries * (1 + config.data.hard_negatives);
  return {queries / dp, documents / dp,          queries, documents, model.embedding_size(),
          dp,           model.parameters_dtype()};
}

Budgets choose_budgets(std::span<const ChunkCost> sizes, int64_t step_tokens, size_t room) {
  AMUR_CHECK(!sizes.empty(), "no sizes to choose from");
  Budgets best{sizes[0].tokens, 0};
  double least = std::numeric_limits<double>::infinity();
  for (const ChunkCost& size : sizes) {
    if (size.saved + 2 * size.scratch > room) continue;
    const auto keep = static_cast<double>(room - 2 * size.scratch);
    const double all = static_cast<double>(size.saved) * static_cast<double>(step_tokens) /
                       static_cast<double>(size.tokens);
    const double twice = all > keep ? 1 - keep / all : 0;
    const double seconds = size.seconds / static_cast<double>(size.tokens) * (1 + kForward * twice);
    if (seconds >= least) continue;
    least = seconds;
    best = {size.tokens, static_cast<int64_t>(keep)};
  }
  return best;
}

std::vector<ChunkCost> measure_chunks(EmbeddingModel& model, const LocalBatch& batch,
                                      std::span<const int64_t> sizes, size_t room,
                                      const RandomKey& step_key) {
  constexpr int kRepeats = 3;  // the first is not timed
  const NowhereSinks nowhere(model);
  std::vector<ChunkCost> costs;
  const auto queries = static_cast<int32_t>(batch.queries.size());
  for (const int64_t size : sizes) {
    if (!costs.empty()) {
      const ChunkCost& last = costs.back();
      const double factor = static_cast<double>(size) / static_cast<double>(last.tokens);
      auto needed =
          static_cast<int64_t>(factor * static_cast<double>(last.saved + 2 * last.scratch));
      if (model.tp()) needed = model.tp()->max(needed);
      if (needed > static_cast<int64_t>(room)) break;
    }
    const std::vector<Chunk> chunks = plan_chunks(batch, size, model.separate_towers());
    if (chunks.empty()) break;
    const Chunk& chunk = chunks[chunks.size() / 2];
    if (!costs.empty() && chunk.tokens < size / 2) break;
    SavedTensors saved(model.device()), scratch(model.device());
    StepCopies copies(model.device());
    Encoder& tower = model.tower(chunk.units.front() < queries ? 0 : 1);
    size_t kept = 0;
    double seconds = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kRepeats; ++i) {
      wait_for(model.device());
      Stopwatch watch;
      try {
        const PackedChunk packed(batch, chunk, &step_key, model.device());
        const ChunkView view = packed.view();
        ScratchScope scope(scratch);
        const TensorView h =
            scope.tensor({view.sequences(), model.embedding_size()}, model.parameters_dtype());
        Context context;
        context.chunk = &view;
        context.saved = &saved;
        context.scratch = &scratch;
        context.dtype = model.dtype();
        context.training = true;
        context.copies = &copies;
        context.tp = model.tp();
        tower.forward(context, h);
        kept = saved.bytes();
        tower.backward(context, h);
      } catch (const MemoryError& error) {
        throw_with_advice(error, tower, model.dtype(), chunk, scratch,
                          saved.peak_bytes() + scratch.peak_bytes());
      }
      wait_for(model.device());
      if (i > 0) seconds = std::min(seconds, watch.elapsed());
    }
    // Of a full chunk.
    const double full = static_cast<double>(size) / static_cast<double>(chunk.tokens);
    costs.push_back({size, static_cast<size_t>(full * static_cast<double>(kept)),
                     static_cast<size_t>(full * static_cast<double>(scratch.peak_bytes())),
                     full * seconds});
  }
  return costs;
}

std::vector<ChunkCost> estimate_chunks(EmbeddingModel& model, const ModelConfig& config,
                                       std::span<const int64_t> sizes) {
  size_t largest = 0;  // copies of a weight
  for (const Parameter& p : model.parameters())
    if (p.kind == ParamKind::weight)
      largest = std::max(largest, static_cast<size_t>(p.value.elements()) * sizeof(float));
  const int64_t width =
      6 * config.hidden + (is_gated(config.activation) ? 3 : 2) * config.resolved_ffn();
  std::vector<ChunkCost> costs;
  for (const int64_t tokens : sizes) {
    const auto t = static_cast<size_t>(tokens);
    // A chunk has a price of its own, that of about 64 tokens.
    costs.push_back({tokens, model.tower(0).saved_bytes(tokens, tokens / 8 + 1, model.dtype()),
                     t * static_cast<size_t>(width) * size_of(model.dtype()) + largest,
                     static_cast<double>(tokens + 64)});
  }
  return costs;
}

Budgets plan_budgets(const BudgetRequest& request, ProcessGrid& grid, Runtime& runtime) {
  const TrainConfig& config = request.config->train;
  EmbeddingModel& model = *request.model;
  Budgets budgets = configured_budgets(config, model.device());
  const bool any_size = config.chunk_tokens == 0;
  if (!any_size && config.activation_budget >= 0) return budgets;
  runtime.set_phase("choosing chunks by memory");
  const bool cpu = model.device() == Device::cpu();
  const std::string name =
      fmt::format("budget/chunk_tokens/{}/{} parameters/{}", request.device_name,
                  model.parameters().global_elements(), cpu ? "estimated" : "measured");
  const auto known = any_size ? choices().find(name) : std::nullopt;
  std::vector<int64_t> sizes(cpu ? kCpuSizes.begin() : kGpuSizes.begin(),
                             cpu ? kCpuSizes.end() : kGpuSizes.end());
  if (known) sizes = {std::stoll(*known)};
  if (!any_size) sizes = {config.chunk_tokens};

  const size_t room = room_for(request, grid, runtime);
  std::vector<ChunkCost> costs;
  int64_t step_tokens = 0;
  if (cpu) {
    costs = estimate_chunks(model, request.config->model, sizes);
  } else {
    const LocalBatch batch = request.first_batch();
    step_tokens = std::ssize(batch.tokens);
    const RandomKey key =
        RandomKey(config.seed).fold(static_cast<uint64_t>(RandomPurpose::dropout)).fold(0);
    costs = measure_chunks(model, batch, sizes, room, key);
  }
  if (costs.empty()) costs = estimate_chunks(model, request.config->model, sizes);  // no text here
  if (grid.world().rank() == 0) {
    const Budgets chosen = choose_budgets(costs, step_tokens, room);
    budgets.chunk_tokens = known || !any_size ? sizes[0] : chosen.chunk_tokens;
    if (config.activation_budget < 0) budgets.activation_budget = chosen.activation_budget;
  }
  budgets.chunk_tokens = grid.world().max(grid.world().rank() == 0 ? budgets.chunk_tokens : 0);
  budgets.activation_budget =
      grid.world().max(grid.world().rank() == 0 ? budgets.activation_budget : 0);
  if (any_size && !known) choices().record(name, fmt::format("{}", budgets.chunk_tokens));
  Log::info("chunks of {} tokens{}, activations of up to {} kept{}; {} a rank are free for them",
            budgets.chunk_tokens, any_size ? " (auto)" : "",
            gib_text(static_cast<double>(budgets.activation_budget)),
            config.activation_budget < 0 ? " (auto)" : "", gib_text(static_cast<double>(room)));
  return budgets;
}

}  // namespace amur
