// Growing a checkpoint from file to file, tensor by tensor: no rank ever holds more than some
// megabytes of either model, except where both are asked for their embeddings.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/train/checkpoint/checkpoint_output.h"
#include "src/train/growth/grow_model.h"
#include "src/train/growth/growth_proof.h"

namespace amur {

class Runtime;

class GrownCheckpoint {
 public:
  // Both models in outline. `info` and `config` (in the precision that it is to be read in, with
  // the vocabulary's size set) are those of `input`. Nothing is written. Collective.
  GrownCheckpoint(std::string input, const CheckpointInfo& info, const Config& config,
                  const Growth& growth, ProcessGrid& grid, Runtime& runtime);
  ~GrownCheckpoint();

  EmbeddingModel& from() { return *from_; }
  EmbeddingModel& to() { return *to_; }
  const Growth& growth() const { return growth_; }
  int64_t bytes_before() const { return bytes_of(old_tensors_); }  // of all tensors
  int64_t bytes_after() const { return bytes_of(tensors_); }

  // What is written with the tensors.
  struct Content {
    CheckpointInfo info;  // configuration, vocabulary and state of the run of the grown model
    std::string
        ancestor;  // JSON object: the newest entry of the lineage, to which the proof is added
    FileOptions file;
  };
  // Reads the old tensors, verifying their check sums, and writes the new ones under a temporary
  // name beside `output`; compares what both files compute, and only then gives the new one its
  // name. Each model is loaded without its optimizer state, one after the other, and shared by the
  // ranks of a tp group of `proof_grid`, which may be another grid of the same ranks. No `probe`:
  // not compared, which the lineage says. The tensors have the same bits at any number of ranks;
  // the output may have the input's name. Collective.
  struct Outcome {
    bool written = false;
    std::optional<GrowthProof> proof;  // one that does not pass: nothing was written
  };
  Outcome grow(const std::string& output, const Content& content,
               const std::optional<ProbePairs>& probe, const Tokenizer& tokenizer,
               ProcessGrid& proof_grid);

 private:
  static int64_t bytes_of(const std::vector<StoredTensor>& tensors);
  // Verifies all of the input; the RMS of each old parameter.
  std::vector<double> read_input();
  const StoredTensor* old_tensor(const Parameter* from, const OptimizerSlot* slot) const;
  void write_tensor(size_t i, const std::vector<double>& rms);
  void write(const std::string& output, CheckpointInfo info, const FileOptions& options);
  GrowthProof prove(const ProbePairs& probe, const Tokenizer& tokenizer, ProcessGrid& grid);
  ProbeEmbeddings embed(const std::string& path, const Config& config,
                        const std::map<std::string, double>& constants, const ProbePairs& probe,
                        const Tokenizer& tokenizer, ProcessGrid& grid);

  std::string input_;
  Config config_, grown_config_;
  const Growth& growth_;
  ProcessGrid& grid_;
  Runtime& runtime_;
  std::unique_ptr<EmbeddingModel> from_, to_;
  std::unique_ptr<Optimizer> old_optimizer_, optimizer_;
  std::vector<OptimizerSlot> old_slots_, slots_;
  std::vector<StoredTensor> old_tensors_, tensors_;
  std::map<std::string, double> old_constants_;
  uint64_t seed_;
  std::unique_ptr<Hdf5File> file_;  // the input, while it is read
  std::unique_ptr<CheckpointOutput> output_;
};

// What `growth` did to a checkpoint called `source`, for the lineage: a JSON object.
std::string ancestor_text(const std::string& source, const Growth& growth, int64_t step,
                          int64_t parameters_before, int64_t parameters_after);

// How many ranks of a machine have to share a model of `bytes`, so that all ranks of the machine
// together do not hold more than `available`: a divisor of both numbers of ranks, 0 where none is
// enough.
int ranks_to_share(double bytes, double available, int ranks_of_machine, int ranks);

}  // namespace amur
