// What several commands begin with: the process grid, the vocabulary, a model from a checkpoint.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "src/train/checkpoint/checkpoint.h"
#include "src/train/data/data.h"
#include "src/train/embedding_model.h"

namespace amur {

class Runtime;

// Where this rank computes: the GPUs of a machine go in turn to its ranks; 0: on the CPU.
Device device_of_rank(int gpus, const Runtime& runtime);

// Starts the watchdog and the compute threads as configured and lays the ranks out. UsageError
// where the ranks or the model do not fit the grid. `device`: where this rank's tensors will be.
std::unique_ptr<ProcessGrid> start_grid(const Config& config, CommBackend backend, Runtime& runtime,
                                        Device device = Device::cpu());

// For load_config: the options of the model and vocabulary that `train.start_from` names. IoError,
// UsageError.
Config starting_point(const std::string& start_from);

// The vocabulary of `train.start_from` or `data.tokenizer_model`, or one trained on the training
// split by rank 0. Collective.
std::unique_ptr<Tokenizer> make_tokenizer(const Config& config, const Dataset& data,
                                          Communicator& world);

// The vocabulary that a checkpoint carries.
std::unique_ptr<Tokenizer> tokenizer_of(const CheckpointInfo& info, const std::string& path);

// What `train.start_from` names, a checkpoint file, a run folder or a Hugging Face folder, but for
// its tensors. Collective where a grid is given.
CheckpointInfo start_info(const std::string& start_from, ProcessGrid* grid = nullptr);

// How the parameters of a new run learn: as where it starts from, those of the loss excepted, and
// by `optimizer.groups`. Before the optimizer is made. Collective over `grid`.
void begin_rules(const Config& config, EmbeddingModel& model, ProcessGrid& grid);

// The model of a new run: from the seed, and all but the parameters of the loss from
// `train.start_from`, where it is given. IoError where that is another model. Collective over
// `grid`, whose tp ranks share the model.
void begin_model(const Config& config, EmbeddingModel& model, ProcessGrid& grid);

// A model as a checkpoint holds it, without optimizer state.
struct TrainedModel {
  CheckpointInfo info;
  Config config;  // the checkpoint's, with `overrides` applied
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<EmbeddingModel> model;
};

// `path` is a checkpoint file, a run folder (its newest complete checkpoint), or the folder of a
// Hugging Face model. Throws UsageError where an override would change the model. Collective.
// The parameters lie on `device`.
TrainedModel load_trained_model(const std::string& path, const std::vector<std::string>& overrides,
                                ProcessGrid& grid, Device device = Device::cpu());
// The configuration of a checkpoint alone, for `start_grid`: any number of ranks, data-parallel,
// unless `overrides` say otherwise.
std::string resolve_checkpoint(const std::string& path);
Config checkpoint_config(const std::string& path, const std::vector<std::string>& overrides);

}  // namespace amur
