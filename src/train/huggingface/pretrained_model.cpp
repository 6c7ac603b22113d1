#include "src/train/huggingface/pretrained_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>

#include "src/core/log.h"
#include "src/train/data/tokenizer_json.h"
#include "src/train/json_reader.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kModules = "modules.json";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kVocabulary = "vocab.txt";
constexpr const char* kPieces = "sentencepiece.bpe.model";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kSpecialTokens = "special_tokens_map.json";
constexpr const char* kLengths = "sentence_bert_config.json";
constexpr const char* kSentences = "config_sentence_transformers.json";
constexpr const char* kDenseWeight = "linear.weight";
// Kept beside the weights, for export.
constexpr const char* kKept[] = {kConfig, kTokenizerConfig, kSpecialTokens, kLengths, kVocabulary};
constexpr int64_t kAnyLength = int64_t{1} << 62;

// A path inside of the folder, with a slash behind it where there is one.
std::string module_folder(const std::string& path, const std::string& origin) {
  if (path.empty()) return "";
  if (path.front() == '/' || path.find("..") != std::string::npos ||
      path.find('\0') != std::string::npos)
    throw IoError("{}: path '{}' leads out of the folder", origin, path);
  return path.back() == '/' ? path : path + "/";
}

std::string last_part(const std::string& dotted) {
  return dotted.substr(dotted.rfind('.') + 1);  // npos + 1: all of it
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += fmt::format("{}{}", text.empty() ? "" : ", ", n);
  return fmt::format("[{}]", text);
}

bool is_number(const std::string& dtype) {
  return dtype == "F32" || dtype == "F16" || dtype == "BF16" || dtype == "F64";
}

}  // namespace

Prompts prompts_of(std::string_view text, const std::string& origin) {
  const JsonNode::Json root = JsonNode::parse(text, origin);
  const JsonNode json(root, origin);
  if (!json.has("prompts")) return {};
  const JsonNode prompts = json["prompts"];
  Prompts p;
  if (json.has("default_prompt_name"))
    p.document = prompts.text_or(json.text_or("default_prompt_name", "").c_str(), "");
  p.query = prompts.text_or("query", p.document);
  for (const char* name : {"corpus", "passage", "document"})
    p.document = prompts.text_or(name, p.document);
  return p;
}

bool PretrainedModel::is_folder(const std::string& path) {
  std::error_code ignored;
  const fs::path folder(path);
  return fs::is_directory(folder, ignored) && !fs::exists(folder / "checkpoints", ignored) &&
         (fs::exists(folder / kModules, ignored) || fs::exists(folder / kConfig, ignored));
}

PretrainedModel::PretrainedModel(const std::string& folder) : name_(folder) {
  std::error_code ignored;
  const fs::path path = fs::weakly_canonical(folder, ignored);
  base_model_ = path.filename().string();
  open([&](const std::string& file) -> std::optional<std::string_view> {
    const std::string full = (fs::path(folder) / file).string();
    std::error_code none;
    if (!fs::exists(full, none)) return std::nullopt;
    return mapped_.emplace(file, MappedFile(full)).first->second.bytes();
  });
}

PretrainedModel::PretrainedModel(const Files& files, const std::string& name) : name_(name) {
  base_model_ = name;
  open(files);
}

PretrainedModel::~PretrainedModel() = default;

std::string PretrainedModel::origin_of(const std::string& file) const {
  return fmt::format("{}/{}", name_, file);
}

std::optional<std::string_view> PretrainedModel::find(const std::string& file) {
  const auto known = files_.find(file);
  if (known != files_.end()) return known->second;
  const std::optional<std::string_view> bytes = (*lookup_)(file);
  if (bytes) files_[file] = *bytes;
  return bytes;
}

std::string_view PretrainedModel::required(const std::string& file) {
  if (const auto bytes = find(file)) return *bytes;
  throw IoError("{} is missing", origin_of(file));
}

void PretrainedModel::open(const Files& files) {
  lookup_ = &files;
  read_modules();
  open_weights();
  if (encoder_.kind == HuggingFaceClass::static_embedding)
    read_table();
  else
    read_encoder_config();
  if (!pooling_folder_.empty()) read_pooling();
  if (!dense_folder_.empty()) read_dense();
  make_config();
  layout_.emplace(encoder_);
  check_tensors();
  for (const char* file : kKept) find(encoder_folder_ + file);
  lookup_ = nullptr;
}

void PretrainedModel::read_encoder_config() {
  const std::string origin = origin_of(encoder_folder_ + kConfig);
  encoder_ = read_encoder(required(encoder_folder_ + kConfig), origin);
  const JsonNode::Json json = JsonNode::parse(required(encoder_folder_ + kConfig), origin);
  const std::string base = JsonNode(json, origin).text_or("_name_or_path", "");
  if (!base.empty()) base_model_ = base;
  read_tokenizer();
  encoder_.model.vocab = tokenizer_->vocab_size();
  if (encoder_.model.vocab > encoder_.table_rows)
    throw UsageError("{}: vocab_size {}, but the tokenizer has {} tokens", origin,
                     encoder_.table_rows, encoder_.model.vocab);
  read_lengths();
}

// A static embedding model is a table and a tokenizer.
void PretrainedModel::read_table() {
  constexpr const char* kTable = "embedding.weight";
  const auto [file, entry] = tensor(kTable);
  if (entry == nullptr || entry->shape.size() != 2 || entry->elements() == 0)
    throw IoError("{}: a table {} of rows for tokens is wanted", weights_.front().origin(), kTable);
  ModelConfig& m = encoder_.model;
  m.layers = 0;
  m.hidden = entry->shape[1];
  encoder_.table_rows = entry->shape[0];
  encoder_.token_types = 0;
  m.max_length = kMaxStaticLength;
  const std::string name = encoder_folder_ + kTokenizer;
  std::string text(required(name));
  JsonNode::Json json = JsonNode::parse(text, origin_of(name));
  const JsonNode root(json, origin_of(name));
  const bool cuts = root.has("truncation");
  if (cuts) m.max_length = root["truncation"]["max_length"].whole(3, kMaxStaticLength);
  if (!cuts || !sentencepiece_model_of(text, origin_of(name))) {
    // Its tokenizer is asked for no markers.
    auto& markers = json["post_processor"];
    if (!markers.is_null()) {
      markers = nullptr;
      text = json.dump();
    }
  }
  tokenizer_ = Tokenizer::from_bytes(std::move(text), origin_of(name));
  m.vocab = tokenizer_->vocab_size();
  if (m.vocab > encoder_.table_rows)
    throw UsageError("{}: {} rows of {}, but the tokenizer has {} tokens",
                     weights_.front().origin(), encoder_.table_rows, kTable, m.vocab);
}

// Transformer and Pooling, or StaticEmbedding, and then perhaps Dense and Normalize.
void PretrainedModel::read_modules() {
  const auto bytes = find(kModules);
  if (!bytes) {
    Log::info("{}: no modules.json, so mean pooling, as sentence-transformers has it", name_);
    return;
  }
  const std::string origin = origin_of(kModules);
  const JsonNode::Json modules = JsonNode::parse(*bytes, origin);
  constexpr const char* kOrder[] = {"Transformer", "Pooling", "Dense", "Normalize"};
  size_t next = 0;
  const JsonNode list(modules, origin);
  for (size_t i = 0; i < list.list_size(); ++i) {
    const JsonNode json = list[i];
    const std::string type = last_part(json.text_or("type", ""));
    const std::string folder = module_folder(json.text_or("path", ""), origin);
    if (next == 0 && type == "StaticEmbedding") {
      encoder_.kind = HuggingFaceClass::static_embedding;
      encoder_folder_ = folder;
      next = 2;
      continue;
    }
    size_t place = next;
    while (place < std::size(kOrder) && type != kOrder[place]) ++place;
    if (place == std::size(kOrder) || (place > 0 && next == 0) || (place > 1 && next == 1))
      json.refuse("type",
                  "the modules must be Transformer, Pooling (or StaticEmbedding), and then none, "
                  "Dense, Normalize or both in this order");
    next = place + 1;
    if (place == 0) encoder_folder_ = folder;
    if (place == 1 || place == 2) {
      if (folder.empty()) throw IoError("{}: {} has no path", origin, type);
      (place == 1 ? pooling_folder_ : dense_folder_) = folder;
    }
  }
  if (next < 2)
    throw UsageError("{}: a Transformer and a Pooling module are wanted, or a StaticEmbedding",
                     origin);
}

void PretrainedModel::read_pooling() {
  const std::string file = pooling_folder_ + kConfig, origin = origin_of(file);
  const JsonNode::Json root = JsonNode::parse(required(file), origin);
  const JsonNode json(root, origin);
  json.only("include_prompt", true);
  std::string mode = json.text_or("pooling_mode", "");
  if (mode.empty()) {
    constexpr std::pair<const char*, const char*> kFlags[] = {
        {"pooling_mode_cls_token", "cls"},
        {"pooling_mode_mean_tokens", "mean"},
        {"pooling_mode_max_tokens", "max"},
        {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"},
        {"pooling_mode_weightedmean_tokens", "weightedmean"},
        {"pooling_mode_lasttoken", "lasttoken"}};
    for (const auto& [flag, name] : kFlags) {
      if (!json.flag_or(flag, false)) continue;
      if (!mode.empty() || (std::string_view(name) != "cls" && std::string_view(name) != "mean"))
        json.refuse(flag, "pooling must be the mean alone or the first token (cls) alone");
      mode = name;
    }
  }
  if (mode.empty()) mode = "mean";
  if (mode != "mean" && mode != "cls")
    json.refuse("pooling_mode", "it must be \"mean\" or \"cls\"");
  encoder_.model.pooling = mode == "cls" ? PoolingKind::cls : PoolingKind::mean;
  for (const char* key : {"embedding_dimension", "word_embedding_dimension"})
    if (json.has(key)) json.only(key, encoder_.model.hidden);
}

void PretrainedModel::read_dense() {
  const std::string file = dense_folder_ + kConfig, origin = origin_of(file);
  const JsonNode::Json root = JsonNode::parse(required(file), origin);
  const JsonNode json(root, origin);
  json.only("bias", false);
  if (!json.has("bias")) json.refuse("bias", "it must be false");
  const std::string activation =
      json.text_or("activation_function", "torch.nn.modules.activation.Tanh");
  if (last_part(activation) != "Identity")
    json.refuse("activation_function", "it must be \"torch.nn.modules.linear.Identity\"");
  json.only("in_features", encoder_.model.hidden);
  encoder_.model.projection = json["out_features"].whole(1, 65536);
  const std::string weights = dense_folder_ + kWeightsFile;
  dense_.emplace(required(weights), origin_of(weights));
  const Safetensors::Entry* weight = dense_->find(kDenseWeight);
  const std::vector<int64_t> shape = {encoder_.model.projection, encoder_.model.hidden};
  if (weight == nullptr || weight->shape != shape || !is_number(weight->dtype))
    throw IoError("{}: {} {} of numbers is wanted", dense_->origin(), kDenseWeight,
                  shape_text(shape));
}

void PretrainedModel::read_lengths() {
  ModelConfig& m = encoder_.model;
  const int64_t longest = m.max_length;
  int64_t length = longest;
  if (const auto bytes = find(encoder_folder_ + kTokenizerConfig)) {
    const JsonNode::Json root =
        JsonNode::parse(*bytes, origin_of(encoder_folder_ + kTokenizerConfig));
    const auto it = root.find("model_max_length");  // 1e30 stands for none
    if (it != root.end() && it->is_number() && it->get<double>() < static_cast<double>(length) &&
        it->get<double>() >= 3)
      length = it->get<int64_t>();
  }
  if (const auto bytes = find(encoder_folder_ + kLengths)) {
    const std::string origin = origin_of(encoder_folder_ + kLengths);
    const JsonNode::Json root = JsonNode::parse(*bytes, origin);
    const JsonNode json(root, origin);
    json.only("do_lower_case", false);
    json.only("transformer_task", "feature-extraction");
    if (json.has("max_seq_length"))
      length = std::min(longest, json["max_seq_length"].whole(3, kAnyLength));
  }
  m.max_length = length;
}

void PretrainedModel::read_tokenizer() {
  const std::string json = encoder_folder_ + kTokenizer, list = encoder_folder_ + kVocabulary,
                    pieces = encoder_folder_ + kPieces;
  const bool fairseq = encoder_.kind == HuggingFaceClass::xlm_roberta;
  if (const auto bytes = find(json)) {
    tokenizer_ = Tokenizer::from_bytes(std::string(*bytes), origin_of(json));
  } else if (const auto model = fairseq ? find(pieces) : std::nullopt) {
    tokenizer_ = Tokenizer::from_bytes(xlm_roberta_tokenizer_json(*model, origin_of(pieces)),
                                       origin_of(pieces));
  } else if (const auto vocabulary = fairseq ? std::nullopt : find(list)) {
    const auto options = find(encoder_folder_ + kTokenizerConfig);
    tokenizer_ = Tokenizer::from_bytes(
        wordpiece_tokenizer_json(*vocabulary, options.value_or(std::string_view()), name_),
        origin_of(list));
  } else {
    throw IoError("{} is missing, and {} too", origin_of(json), fairseq ? kPieces : kVocabulary);
  }
}

void PretrainedModel::make_config() {
  Config config;
  config.model = encoder_.model;
  config.data.tokenizer = tokenizer_->tokenizer_kind();
  config.data.vocab_size = encoder_.model.vocab;
  SourceConfig source;
  source.format = SourceFormat::none;
  if (const auto bytes = find(kSentences)) {
    const Prompts prompts = prompts_of(*bytes, origin_of(kSentences));
    source.query_prefix = prompts.query;
    source.document_prefix = prompts.document;
  }
  config.data.sources = {source};
  // Ranges, and what the values mean together.
  config_ = parse_config(to_yaml(config), name_, {});
  config_.model.vocab = encoder_.model.vocab;
}

void PretrainedModel::open_weights() {
  const std::string one = encoder_folder_ + kWeightsFile, index = encoder_folder_ + kIndex;
  if (const auto bytes = find(one)) {
    weights_.emplace_back(*bytes, origin_of(one));
  } else if (const auto list = find(index)) {
    const JsonNode::Json json = JsonNode::parse(*list, origin_of(index));
    const auto map = json.find("weight_map");
    if (map == json.end() || !map->is_object() || map->empty())
      throw IoError("{}: weight_map is missing", origin_of(index));
    std::set<std::string> names;
    for (const auto& [tensor, file] : map->items()) {
      if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
        throw IoError("{}: weight_map: '{}' names no file", origin_of(index), tensor);
      names.insert(file.get<std::string>());
    }
    for (const std::string& name : names)
      weights_.emplace_back(required(encoder_folder_ + name), origin_of(encoder_folder_ + name));
  } else {
    throw IoError(
        "{} is missing; weights in another form (pytorch_model.bin) are not read: save "
        "the model with safe_serialization=True",
        origin_of(one));
  }
}

PretrainedModel::Found PretrainedModel::tensor(const std::string& name) const {
  for (const Safetensors& file : weights_)
    if (const Safetensors::Entry* entry = file.find(prefix_ + name)) return {&file, entry};
  return {};
}

void PretrainedModel::check_tensors() {
  const std::string& probe = layout_->tensors().front().name;
  for (const char* prefix : {"", "bert.", "distilbert.", "roberta.", "model."})
    for (const Safetensors& file : weights_)
      if (file.find(prefix + probe) != nullptr) prefix_ = prefix;
  std::string problems;
  for (const SafetensorsInfo& wanted : layout_->tensors()) {
    const auto [file, entry] = tensor(wanted.name);
    if (entry == nullptr)
      problems +=
          fmt::format("\n  missing: {}{} {}", prefix_, wanted.name, shape_text(wanted.shape));
    else if (entry->shape != wanted.shape)
      problems += fmt::format("\n  shape: {} is {}, {} is wanted", entry->name,
                              shape_text(entry->shape), shape_text(wanted.shape));
    else if (!is_number(entry->dtype))
      problems += fmt::format("\n  dtype: {} is {}; F32, F16, BF16 or F64 is wanted", entry->name,
                              entry->dtype);
  }
  if (!problems.empty())
    throw IoError("{} does not hold what {} says:{}", weights_.front().origin(),
                  origin_of(encoder_folder_ + kConfig), problems);
  for (size_t i = 0; i < layout_->tensors().size(); ++i) elements_ += layout_->covered(i);
  if (dense_) elements_ += encoder_.model.projection * encoder_.model.hidden;
}

void PretrainedModel::read(const Parameter& parameter, const Slab& slab, TensorView values) const {
  AMUR_CHECK(values.shape() == slab.count, "{}: {} for a slab of {}", parameter.name,
             values.shape().text(), slab.count.text());
  if (parameter.kind == ParamKind::scalar) {
    dispatch_f32_f64(values.dtype(), "read", [&]<class T>() {
      std::fill_n(values.as<T>(), values.elements(), static_cast<T>(std::log(config_.loss.scale)));
    });
    return;
  }
  const TensorView flat = values.reshape({values.elements()});
  const std::string_view name = name_in_tower(parameter.name);
  if (name == "projection.weight") {
    const Safetensors::Entry& weight = *dense_->find(kDenseWeight);
    for_each_run(slab, parameter.global_shape(), [&](int64_t at, int64_t first, int64_t count) {
      dense_->read(weight, first, flat.slice(at, count));
    });
    return;
  }
  const std::vector<TensorLayout::Run>& runs = layout_->runs(name);
  for_each_run(slab, parameter.global_shape(), [&](int64_t at, int64_t first, int64_t count) {
    int64_t done = 0;
    for (const TensorLayout::Run& run : runs) {
      const int64_t from = std::max(first, run.first);
      const int64_t to = std::min(first + count, run.first + run.count);
      if (from >= to) continue;
      const auto [file, entry] = tensor(layout_->tensors()[run.tensor].name);
      file->read(*entry, run.tensor_first + from - run.first,
                 flat.slice(at + from - first, to - from));
      done += to - from;
    }
    AMUR_CHECK(done == count, "{}: {} of {} elements from {} on are in the file", parameter.name,
               done, count, first);
  });
}

void PretrainedModel::release() const {
  for (const auto& [name, file] : mapped_) file.release();
}

std::map<std::string, std::string> PretrainedModel::carried() const {
  std::map<std::string, std::string> all;
  for (const char* file : kKept)
    if (const auto it = files_.find(encoder_folder_ + file);
        it != files_.end() && !it->second.empty())
      all[file] = it->second;
  if (const auto it = files_.find(kSentences); it != files_.end()) all[kSentences] = it->second;

  std::vector<SafetensorsInfo> infos;
  std::vector<std::string_view> contents;
  std::set<std::string> names;
  for (const Safetensors& file : weights_) {
    for (const Safetensors::Entry& entry : file.tensors()) {
      SafetensorsInfo info = entry;
      std::string_view bytes = entry.bytes;
      const bool own = entry.name.starts_with(prefix_);
      if (own) info.name = entry.name.substr(prefix_.size());
      if (const auto index = own ? layout_->index_of(info.name) : std::nullopt) {
        const TensorLayout::Rest rest = layout_->rest(*index);
        if (rest.count == 0) continue;
        const auto size = static_cast<int64_t>(safetensors_element_size(entry.dtype));
        info.shape[0] = rest.count / (entry.elements() / info.shape[0]);
        bytes = bytes.substr(static_cast<size_t>(rest.first * size),
                             static_cast<size_t>(rest.count * size));
      }
      if (!names.insert(info.name).second) continue;
      infos.push_back(std::move(info));
      contents.push_back(bytes);
    }
  }
  if (!infos.empty()) all[kCarriedTensors] = safetensors_bytes(infos, contents, {});
  return all;
}

}  // namespace amur
