// `amur import hf`: a pretrained model's folder as a checkpoint, tensor by tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "src/train/checkpoint/checkpoint.h"
#include "src/train/huggingface/pretrained_model.h"

namespace amur {

class Runtime;

// Everything of such a checkpoint that is not a tensor.
CheckpointInfo imported_info(const PretrainedModel& model, const std::string& folder);

struct ImportOptions {
  std::string folder, output;
  bool force = false;  // replace a file of that name
};

struct ImportResult {
  std::string kind, base_model;  // "BERT", "nreimers/MiniLM-L6-H384-uncased"
  int64_t parameters = 0, tokens = 0, max_length = 0, embedding_size = 0;
  std::vector<std::string> carried;  // what Amur has no use for, kept for export
};

// The checkpoint has no optimizer state: train from it with train.start_from, or embed, evaluate
// and widen it as it is. No rank holds more than some megabytes of the model, but for what is
// carried along. Collective over all ranks; on failure nothing stands under the output's name.
ImportResult import_pretrained(const ImportOptions& options, ProcessGrid& grid, Runtime& runtime);

std::string to_text(const ImportResult& result, const ImportOptions& options);
std::string to_json(const ImportResult& result, const ImportOptions& options);

}  // namespace amur
