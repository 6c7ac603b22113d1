// `amur export hf`: the encoder of a checkpoint as a folder that sentence-transformers and
// transformers load as it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace amur {

class Runtime;

struct ExportOptions {
  std::string checkpoint, folder;  // a checkpoint file or run folder; the folder to be made
  std::string tower = "";          // query or document, where the towers are separate
  bool force = false;              // replace a folder of that name
};

struct ExportResult {
  std::string kind;  // "BERT"
  int64_t parameters = 0;
  std::vector<std::string> files;  // in the folder
  std::vector<std::string> notes;  // what the folder does not say as the checkpoint does
};

// Written by rank 0 under a temporary name, tensor by tensor, verifying check sums, and renamed
// when it is complete. UsageError where no class can express the model, naming the option; what
// only has another form is converted (a scale of attention other than 1 / sqrt(head size) goes into
// the query weights). Collective over `world`.
ExportResult export_pretrained(const ExportOptions& options, Communicator& world, Runtime& runtime);

std::string to_text(const ExportResult& result, const ExportOptions& options);
std::string to_json(const ExportResult& result, const ExportOptions& options);

}  // namespace amur
