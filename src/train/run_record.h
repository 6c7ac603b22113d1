// What the bits of a run depend on besides its configuration: the grid, the machines, and the
// choices made by measuring (src/core/choices.h). Written to the run folder and to each checkpoint;
// on resume, choices are made alike, and where something else is different the log says so.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "comm/process_grid.h"
#include "src/core/choices.h"
#include "src/train/checkpoint/checkpoint.h"
#include "src/train/checkpoint/run_folder.h"

namespace amur {

class Runtime;

// "CPU" or the GPU's name.
std::string device_name(Device device);

// By name, in words: "grid" "dp 2, tp 1", "ranks per machine", "threads per rank", "device" "CPU"
// or the GPU's name, "instruction set" (of our own kernels on the CPU), "libraries" (of products).
// What is not the same on all ranks is a list. Collective.
std::map<std::string, std::string> conditions_of(ProcessGrid& grid, Runtime& runtime,
                                                 Device device);

// What differs, one "threads per rank: 2, now 4" each, with ", " between; "" where nothing does, or
// `before` says nothing (an older checkpoint).
std::string changed_conditions(const std::map<std::string, std::string>& before,
                               const std::map<std::string, std::string>& now);

// Keeps the record of one run. Every function is collective.
class RunRecord {
 public:
  // The choices of this process become those of `saved`, the checkpoint that the run goes on from,
  // or none. Notes what has changed since, for the log.
  RunRecord(const CheckpointInfo* saved, RunFolder& folder, ProcessGrid& grid, Runtime& runtime,
            Device device);

  // Every rank takes over the choices of rank 0, which has made some: before they are used.
  void share();
  // All choices of what comes next are made and shared: they and the conditions are noted in `info`
  // and, where something is new, in choices.json. After a resume the log says what has changed or
  // was not in the checkpoint, and that bits may differ.
  void settle(CheckpointInfo& info);

 private:
  RunFolder& folder_;
  Communicator& world_;
  std::map<std::string, std::string> conditions_;
  std::string changed_;                  // of the conditions
  std::optional<Choices::Map> resumed_;  // from a checkpoint, until the first `settle`
  std::optional<Choices::Map> written_;  // in choices.json
};

}  // namespace amur
