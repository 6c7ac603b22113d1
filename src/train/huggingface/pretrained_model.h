// A pretrained encoder as Hugging Face folders hold it: what `amur import hf` turns into a
// checkpoint, and what other commands load as it is.
//
// Read are config.json, model.safetensors (or its shards), tokenizer.json (else BERT's vocab.txt,
// or XLM-RoBERTa's sentencepiece.bpe.model), and of sentence-transformers modules.json, the
// pooling, a projection without bias (2_Dense), the maximum length and the prompts. Everything is
// checked before a weight is read; an option that Amur does not compute is refused by its name and
// value.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/train/config/config.h"
#include "src/train/data/mapped_file.h"
#include "src/train/data/tokenizer.h"
#include "src/train/huggingface/tensor_layout.h"

namespace amur {

// What is put before queries and before documents.
struct Prompts {
  std::string query, document;
  bool operator==(const Prompts&) const = default;
};
// From a config_sentence_transformers.json: "query", and "document", "passage" or "corpus", else
// the default one.
Prompts prompts_of(std::string_view json, const std::string& origin);

class PretrainedModel {
 public:
  // Whether `path` is a folder of this kind.
  static bool is_folder(const std::string& path);
  // Maps the files; every rank may do so. UsageError or IoError, naming the file.
  explicit PretrainedModel(const std::string& folder);
  // From files by their names in the folder, which must outlive it; nothing for one that is not
  // there. `name` stands for the folder in messages.
  using Files = std::function<std::optional<std::string_view>(const std::string&)>;
  PretrainedModel(const Files& files, const std::string& name);
  ~PretrainedModel();
  PretrainedModel(const PretrainedModel&) = delete;
  PretrainedModel& operator=(const PretrainedModel&) = delete;

  // Model, vocabulary and prefixes; a source without data. As parse_config reads it back.
  const Config& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  HuggingFaceClass kind() const { return encoder_.kind; }
  // What it was made from, as far as the files say; else the folder's name.
  const std::string& base_model() const { return base_model_; }
  int64_t parameters() const { return elements_; }  // that the encoder uses

  // A part of a parameter of a model of `config`, to f32 or f64; the loss scale is
  // config.loss.scale. Reads nothing else.
  void read(const Parameter& parameter, const Slab& slab, TensorView values) const;

  // Gives back the memory of what was read so far; it is read again on demand.
  void release() const;

  // What Amur has no use for, for CheckpointInfo::carried: configuration files, and the tensors or
  // rows that no parameter covers.
  std::map<std::string, std::string> carried() const;

 private:
  struct Found {
    const Safetensors* file = nullptr;
    const Safetensors::Entry* entry = nullptr;
  };
  std::string origin_of(const std::string& file) const;
  std::optional<std::string_view> find(const std::string& file);
  std::string_view required(const std::string& file);
  void open(const Files& files);
  void read_modules();
  void read_encoder_config();
  void read_table();
  void read_pooling();
  void read_dense();
  void read_lengths();
  void read_tokenizer();
  void make_config();
  void open_weights();
  void check_tensors();
  Found tensor(const std::string& name) const;  // named as in the layout

  std::map<std::string, MappedFile> mapped_;
  const Files* lookup_ = nullptr;                  // while the files are opened
  std::map<std::string, std::string_view> files_;  // those that were asked for and are there
  std::string name_, base_model_;
  std::string encoder_folder_, pooling_folder_, dense_folder_;  // "" or "1_Pooling/"
  Config config_;
  HuggingFaceEncoder encoder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<TensorLayout> layout_;
  std::vector<Safetensors> weights_;
  std::string prefix_;  // of tensor names: "bert."
  std::optional<Safetensors> dense_;
  int64_t elements_ = 0;
};

inline constexpr const char* kWeightsFile = "model.safetensors";

// Elements of a tensor that import and export hold in memory.
inline constexpr int64_t kExchangeBlock = int64_t{1} << 20;

// Under this name `carried` keeps tensors: whole ones, and the rows of those that parameters cover
// in part which they do not. The other names are those of files.
inline constexpr const char* kCarriedTensors = "unused.safetensors";

}  // namespace amur
