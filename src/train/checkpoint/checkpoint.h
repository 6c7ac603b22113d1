// Checkpoints: one HDF5 file each, version 1 (docs/checkpoint-format.md), written in parallel by
// all ranks and holding logical tensors at their global shapes. Nothing per rank is stored.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "src/model/parameter.h"
#include "src/train/checkpoint/hdf5_file.h"
#include "src/train/data/batch.h"
#include "src/train/optimizer/optimizer.h"

namespace amur {

// History of a run: one row a step, columns by name. NaN where a column had no value.
struct MetricsHistory {
  std::vector<std::string> columns;
  std::vector<std::vector<double>> values;  // [columns][rows]
  int64_t rows() const { return values.empty() ? 0 : static_cast<int64_t>(values[0].size()); }
};

// Everything of a checkpoint that is not a sharded tensor.
struct CheckpointInfo {
  int64_t step = 0;
  DataPosition position;
  uint64_t seed = 0;
  std::string config_yaml;                       // resolved
  std::map<std::string, std::string> tokenizer;  // "sentencepiece" -> model bytes
  std::string data_fingerprint;
  MetricsHistory metrics;
  std::map<std::string, std::string> measured_choices;  // src/core/choices.h; reused on resume
  // What else the bits depend on (src/train/run_record.h), in words, for comparison on resume;
  // empty in files of older programs.
  std::map<std::string, std::string> conditions;
  std::map<std::string, double> best;       // best evaluation so far, e.g. {"recall@1", 0.55}
  std::map<std::string, double> constants;  // of the model, see ModelConstant: eps, scales
  std::string optimizer;                    // "tiger"
  std::vector<std::string> lineage;         // JSON objects, oldest first: what it grew from
  // Files and tensors of a model from elsewhere that Amur does not use, byte for byte, to hand them
  // back with it. Names without '/'.
  std::map<std::string, std::string> carried;
  // Information only, not used by load:
  std::string written_by;  // "amur 0.1.0"
  int world_size = 1;
  int dp = 1, tp = 1;
};

FileOptions file_options(const CheckpointConfig& config);

class Checkpoint {
 public:
  // What this rank puts into a checkpoint: its rows of every tensor.
  class Snapshot {
   public:
    Snapshot(ParameterSet& parameters, std::span<const OptimizerSlot> slots,
             const std::string& optimizer, ProcessGrid& grid);
    ~Snapshot();
    // Copies the rows as they are now to host memory, which is kept for the next time; without it
    // they are read when they are written.
    void take();
    size_t bytes() const;  // of a copy

    struct Parts;

   private:
    friend class Checkpoint;
    std::unique_ptr<Parts> parts_;
  };

  // Writes to a temporary name, flushes, closes, agrees, verifies, renames. Collective over
  // `world`, all ranks of the snapshots' grid; on failure (IoError on every rank) nothing exists
  // under `path` that was not there before.
  static void save(const std::string& path, const CheckpointInfo& info, const Snapshot& snapshot,
                   const FileOptions& options, Communicator& world);
  static void save(const std::string& path, const CheckpointInfo& info, ParameterSet& parameters,
                   std::span<const OptimizerSlot> slots, int compression, ProcessGrid& grid);

  // Checks format, version, completeness; collective where a grid is given.
  static CheckpointInfo read_info(const std::string& path, ProcessGrid* grid = nullptr);
  // Fills the parameters and, unless `slots` is empty, the optimizer state, of this rank's shards;
  // verifies checksums. Tensors of another precision are converted, with a line in the log where
  // bf16 is one of the two. Reports all missing, unexpected and mis-shaped tensors at once
  // (IoError). `unpublished`: of a file that is still on its way to its name, too. `towers`:
  // without the parameters of the loss (temperature, bias), whichever there are.
  enum class Wanted : uint8_t { complete, unpublished, towers };
  static void load(const std::string& path, ParameterSet& parameters,
                   std::span<const OptimizerSlot> slots, ProcessGrid& grid,
                   Wanted wanted = Wanted::complete);

  // How each parameter learns, as the file has it: learning-rate and decay multipliers, RMS floor,
  // frozen. Before the optimizer is made. Collective.
  static void load_rules(const std::string& path, ParameterSet& parameters, ProcessGrid& grid,
                         Wanted wanted = Wanted::complete);

  // The newest complete checkpoint of a run folder: one of a later step than `latest` names,
  // written after that link was made (the run was killed before it made the next), else the one
  // that it names, else the highest step. Names those that cannot be read in the log.
  static std::optional<std::string> newest_complete(const std::string& checkpoints_dir);
};

}  // namespace amur
