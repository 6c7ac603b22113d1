#include "src/train/run_record.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "comm/runtime.h"
#include "kernels/cpu/isa.h"
#include "kernels/gemm.h"
#include "src/core/gpu.h"
#include "src/core/log.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

// Each different text once, in the order of the ranks.
std::string of_all_ranks(const std::string& text, Communicator& world) {
  std::string all;
  std::vector<std::string> seen;
  for (const std::string& one : world.gather(text)) {
    if (std::find(seen.begin(), seen.end(), one) != seen.end()) continue;
    seen.push_back(one);
    all += fmt::format("{}{}", all.empty() ? "" : "; ", one);
  }
  return all;
}

std::string library_name(Device device) {
  return device == Device::cpu() ? gemm_library_text() : gpu_backend().library_text();
}

}  // namespace

std::string device_name(Device device) {
  if (device == Device::cpu()) return "CPU";
  const GpuProbe probe = gpu_backend().probe();
  return probe.gpus.at(static_cast<size_t>(device.index)).name;
}

std::map<std::string, std::string> conditions_of(ProcessGrid& grid, Runtime& runtime,
                                                 Device device) {
  Communicator& world = grid.world();
  std::map<std::string, std::string> all;
  all["grid"] = fmt::format("dp {}, tp {}", grid.shape().dp, grid.shape().tp);
  all["ranks per machine"] = of_all_ranks(fmt::format("{}", runtime.node_size()), world);
  all["threads per rank"] = of_all_ranks(fmt::format("{}", runtime.threads()), world);
  all["device"] = of_all_ranks(device_name(device), world);
  all["instruction set"] = of_all_ranks(cpu::name_of(cpu::instruction_set()), world);
  all["libraries"] = of_all_ranks(library_name(device), world);
  return all;
}

std::string changed_conditions(const std::map<std::string, std::string>& before,
                               const std::map<std::string, std::string>& now) {
  std::string text;
  for (const auto& [name, value] : now) {
    const auto found = before.find(name);
    if (found != before.end() && found->second != value)
      text += fmt::format("{}{}: {}, now {}", text.empty() ? "" : ", ", name, found->second, value);
  }
  return text;
}

RunRecord::RunRecord(const CheckpointInfo* saved, RunFolder& folder, ProcessGrid& grid,
                     Runtime& runtime, Device device)
    : folder_(folder), world_(grid.world()), conditions_(conditions_of(grid, runtime, device)) {
  if (saved) {
    resumed_ = saved->measured_choices;
    changed_ = changed_conditions(saved->conditions, conditions_);
  }
  choices().replace(resumed_.value_or(Choices::Map()));
}

void RunRecord::share() {
  std::string text = world_.rank() == 0 ? Json(choices().entries()).dump() : std::string();
  world_.broadcast(text, 0);
  choices().replace(Json::parse(text).get<Choices::Map>());
}

void RunRecord::settle(CheckpointInfo& info) {
  constexpr const char* kMayDiffer = "bits may differ from those of a run that was not interrupted";
  const Choices::Map all = choices().entries();
  if (!changed_.empty()) Log::info("resume: {}; {}", changed_, kMayDiffer);
  if (resumed_) {
    std::string first;
    size_t added = 0;
    for (const auto& [name, value] : all)
      if (!resumed_->contains(name) && added++ == 0) first = name;
    if (added > 0)
      Log::info("resume: the checkpoint has no choice for {}{}: made anew; {}", first,
                added > 1 ? fmt::format(" and {} more", added - 1) : std::string(), kMayDiffer);
  }
  if (const std::string& devices = conditions_["device"]; devices.find("; ") != std::string::npos)
    Log::warn(
        "the ranks compute on different devices ({}): what rank 0 measured counts for its own "
        "kind, "
        "the others take what their library proposes, and bits depend on which rank has which",
        devices);
  changed_.clear();
  resumed_.reset();
  info.measured_choices = all;
  info.conditions = conditions_;
  if (written_ == all) return;
  folder_.write_choices(Json{{"choices", all}, {"conditions", conditions_}}.dump(2));
  written_ = all;
}

}  // namespace amur
