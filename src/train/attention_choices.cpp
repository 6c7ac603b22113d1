#include "src/train/attention_choices.h"

#include <algorithm>
#include <set>

#include "comm/runtime.h"
#include "src/core/choices.h"
#include "src/core/device_backend.h"
#include "src/core/log.h"
#include "src/train/budgets.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

constexpr int64_t kFewestTokens = 2048;  // of a call that is timed

AttentionEngine engine_named(const std::string& name) {
  return name == name_of(AttentionEngine::cudnn) ? AttentionEngine::cudnn : AttentionEngine::own;
}

void measure(const std::vector<AttentionKind>& kinds, int64_t tokens, Device device,
             const std::string& library) {
  Stopwatch watch;
  int64_t timed = 0, by_cudnn = 0;
  Log::progress("timing attention");
  try {
    for (const AttentionKind& kind : kinds) {
      const std::string name = choice_name(kind, device_name(device), library);
      if (choices().find(name)) continue;
      const AttentionTimes times =
          time_attention_engines(kind, std::max(tokens, kind.longest), device);
      choices().record(name, name_of(times.faster()));
      ++timed;
      by_cudnn += times.faster() == AttentionEngine::cudnn;
      Log::debug(
          "attention {}: our own {:.3g} ms, {}", kind.text(), 1e3 * times.own,
          times.cudnn ? fmt::format("{} {:.3g} ms", library, 1e3 * *times.cudnn) : times.problem);
    }
    if (timed > 0)
      Log::info("attention was timed in {:.1f} s: of {} kinds {} by {}, as choices.json says",
                watch.elapsed(), timed, by_cudnn, library);
  } catch (const MemoryError& error) {
    Log::warn("attention cannot be timed: {}; what is left is computed by our own kernel",
              error.what());
  }
  Log::progress("");
}

}  // namespace

std::vector<AttentionKind> attention_kinds(const Config& config, int tp) {
  const ModelConfig& m = config.model;
  std::vector<AttentionKind> kinds;
  if (config.train.precision != Precision::bf16) return kinds;
  bool sees_all = false;
  for (int64_t layer = 0; layer < m.layers; ++layer) sees_all |= m.window_of(layer) == 0;
  if (!sees_all) return kinds;
  const std::set<int64_t> heads = {m.heads / tp, (m.heads + tp - 1) / tp};
  for (const auto direction : {AttentionDirection::forward, AttentionDirection::backward}) {
    if (direction == AttentionDirection::backward && m.attention_dropout > 0) continue;
    for (const int64_t of_rank : heads) {
      if (of_rank == 0) continue;
      for (int64_t longest = length_bucket(1);; longest = length_bucket(longest + 1)) {
        kinds.push_back({direction, of_rank, m.resolved_head_size(), longest});
        if (longest >= m.max_length) break;
      }
    }
  }
  return kinds;
}

std::string choice_name(const AttentionKind& kind, const std::string& device,
                        const std::string& library) {
  return fmt::format("attention/{}/{}/{}", device, library, kind.text());
}

void choose_attention_engines(const Config& config, Device device, ProcessGrid& grid,
                              Runtime& runtime, RunRecord& record) {
  if (device == Device::cpu()) return;
  if (config.runtime.attention != AttentionChoice::automatic) {
    const bool cudnn = config.runtime.attention == AttentionChoice::cudnn;
    if (cudnn && other_attention_library(device).empty())
      throw UsageError(
          "runtime.attention: cudnn was asked for, but cannot be used here; `amur doctor` says "
          "why, "
          "'own' or 'auto' do without");
    use_attention_engines({cudnn ? AttentionEngine::cudnn : AttentionEngine::own, {}}, device);
    return;
  }
  const std::vector<AttentionKind> kinds = attention_kinds(config, grid.shape().tp);
  const std::string library = other_attention_library(device);
  runtime.set_phase("timing attention");
  if (config.runtime.tune && grid.world().rank() == 0 && !library.empty())
    measure(kinds,
            std::clamp(configured_budgets(config.train, device).chunk_tokens, kFewestTokens,
                       kLargestAutoChunk),
            device, library);
  record.share();
  AttentionEngines engines;
  for (const AttentionKind& kind : kinds)
    if (const auto chosen = choices().find(choice_name(kind, device_name(device), library)))
      engines.chosen[kind] = engine_named(*chosen);
  use_attention_engines(engines, device);
}

}  // namespace amur
