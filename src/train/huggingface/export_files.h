// The text files of an exported folder, and its model card.
#pragma once

#include <map>
#include <string>

#include "src/train/checkpoint/checkpoint.h"
#include "src/train/config/config.h"
#include "src/train/data/tokenizer.h"
#include "src/train/huggingface/model_class.h"

namespace amur {

// What is handed over.
struct ExportedModel {
  HuggingFaceEncoder encoder;
  const CheckpointInfo& info;
  const Config& config;  // of the run
  const Tokenizer& tokenizer;
  bool as_imported = false;  // of the class that it was imported as: info.carried fits
  int64_t parameters = 0;
};

inline constexpr const char* kDenseFolder = "2_Dense/";

// By their names in the folder: everything but weights and the model card. UsageError where the
// vocabulary cannot be written as a tokenizer.json.
std::map<std::string, std::string> text_files(const ExportedModel& model);

// README.md: what it is, how to use it, what it was trained on, what it reached, what it grew from.
std::string model_card(const ExportedModel& model);

}  // namespace amur
