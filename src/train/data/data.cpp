#include "src/train/data/data.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <unordered_map>

#include "src/core/error.h"
#include "src/core/hash.h"
#include "src/train/agreement.h"
#include "src/train/data/line_source.h"
#include "src/train/data/mapped_file.h"
#include "src/train/data/package_source.h"
#include "src/train/data/pair_source.h"

namespace amur {
namespace {

// Samples read before touched pages are given back; each may have touched some 128 KiB of text
// and index, because the kernel maps what lies around.
constexpr int64_t kReleaseEvery = 1024;

bool is_line_format(const SourceConfig& source) {
  return source.format == SourceFormat::tsv || source.format == SourceFormat::jsonl;
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r\v\f";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string folded(std::string_view text) {
  std::string result;
  for (const char c : trimmed(text)) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space)
      result.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
    else if (result.back() != ' ')
      result.push_back(' ');
  }
  return result;
}

uint64_t text_identity(std::string_view text) {
  return mix64(fnv1a(text));
}

std::string prepare_source(const SourceConfig& source, const DataConfig& config) {
  if (source.format == SourceFormat::none)
    throw UsageError(
        "data.sources: this model was imported and has no data of its own; give the data to "
        "train "
        "or evaluate on");
  return is_line_format(source) ? prepare_line_source(source, config).packed() : "";
}

std::unique_ptr<PairSource> open_source(const SourceConfig& source, const DataConfig& config,
                                        const std::string& prepared) {
  const Split eval_split = config.eval_split == EvalSplit::val ? Split::val : Split::test;
  switch (source.format) {
    case SourceFormat::trans_de_en:
      return open_trans_de_en(source, eval_split);
    case SourceFormat::wordnet:
      return open_wordnet(source, eval_split);
    default:
      return open_line_source(source, config, LineCache::unpacked(prepared));
  }
}

struct Dataset::State {
  DataConfig config;
  std::vector<std::unique_ptr<PairSource>> sources;
  std::vector<int64_t> first;  // [sources + 1] global id of the first sample of each source
  std::vector<std::string> stamps;
  mutable std::atomic<int64_t> reads{0};

  // The source of a global id, and its number there.
  std::pair<size_t, int64_t> locate(int64_t id) const {
    AMUR_CHECK(id >= 0 && id < first.back(), "sample {} of {}", id, first.back());
    const auto next = std::upper_bound(first.begin(), first.end(), id);
    const auto source = static_cast<size_t>(next - first.begin() - 1);
    return {source, id - first[source]};
  }
  void release() const {
    for (const auto& source : sources) source->release();
  }
};

Dataset::Dataset(const DataConfig& config, Communicator& world, Communicator& node)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.config = config;
  if (config.sources.empty()) throw UsageError("data.sources names no source to train on");
  std::vector<std::string> prepared(config.sources.size());
  read_on_every_rank(world, [&] {
    if (node.rank() != 0) return;
    for (size_t i = 0; i < config.sources.size(); ++i)
      prepared[i] = prepare_source(config.sources[i], config);
  });
  for (std::string& where : prepared) node.broadcast(where, 0);
  read_on_every_rank(world, [&] {
    state.first.push_back(0);
    for (size_t i = 0; i < config.sources.size(); ++i) {
      state.sources.push_back(open_source(config.sources[i], config, prepared[i]));
      const PairSource& source = *state.sources.back();
      state.first.push_back(state.first.back() + source.samples());
      for (const std::string& file : source.files()) {
        const FileStamp stamp = stamp_of(file);
        state.stamps.push_back(fmt::format("{} {} {:016x}\n",
                                           std::filesystem::path(file).filename().string(),
                                           stamp.size, stamp.sampled));
      }
    }
  });
  // What hosts without a common file system hold must be the same.
  const auto identity =
      static_cast<int64_t>(fnv1a(fmt::format("{}{}", fingerprint(), state.first.back())) >> 1);
  if (world.min(identity) != world.max(identity))
    throw UsageError(
        "the data files differ between the hosts of this job: copy the same files to "
        "every host");
}

Dataset::~Dataset() = default;

int64_t Dataset::samples() const {
  return state_->first.back();
}

RawSample Dataset::sample(int64_t id) const {
  const auto [source, index] = state_->locate(id);
  RawSample sample = state_->sources[source]->sample(index);
  if (state_->reads.fetch_add(1, std::memory_order_relaxed) % kReleaseEvery == kReleaseEvery - 1)
    state_->release();
  return sample;
}

int64_t Dataset::text_bytes(int64_t id) const {
  const auto [source, index] = state_->locate(id);
  return state_->sources[source]->text_bytes(index);
}

int Dataset::source_of(int64_t id) const {
  return static_cast<int>(state_->locate(id).first);
}

const SourceConfig& Dataset::source(int index) const {
  return state_->config.sources.at(static_cast<size_t>(index));
}

int Dataset::sources() const {
  return static_cast<int>(state_->sources.size());
}

std::pair<int64_t, int64_t> Dataset::range_of(int source) const {
  const auto index = static_cast<size_t>(source);
  return {state_->first.at(index), state_->first.at(index + 1)};
}

bool Dataset::weighted() const {
  return state_->config.sources.front().weight > 0;
}

EvalSet Dataset::eval_set() const {
  struct Prefixed {
    std::string query, document;
  };
  std::vector<Prefixed> pairs;
  for (size_t i = 0; i < state_->sources.size(); ++i) {
    const SourceConfig& source = state_->config.sources[i];
    for (EvalPair& pair : state_->sources[i]->evaluation())
      pairs.push_back({source.query_prefix + pair.query, source.document_prefix + pair.document});
  }
  const auto available = static_cast<int64_t>(pairs.size());
  const int64_t limit = state_->config.eval_limit;
  const int64_t count = limit > 0 ? std::min(limit, available) : available;

  EvalSet set;
  set.name = state_->config.eval_split == EvalSplit::val ? "val" : "test";
  std::unordered_map<std::string, int32_t> queries, documents;
  const auto number = [](std::unordered_map<std::string, int32_t>& seen,
                         std::vector<std::string>& texts, std::string& text) {
    const auto [found, added] = seen.try_emplace(text, static_cast<int32_t>(texts.size()));
    if (added) texts.push_back(std::move(text));
    return found->second;
  };
  for (int64_t i = 0; i < count; ++i) {
    // Spread evenly where the limit leaves some out.
    Prefixed& pair = pairs[static_cast<size_t>(i * available / count)];
    const auto query = static_cast<size_t>(number(queries, set.queries, pair.query));
    const int32_t document = number(documents, set.documents, pair.document);
    if (query == set.right.size()) set.right.emplace_back();
    set.right[query].push_back(document);
  }
  for (auto& right : set.right) {
    std::sort(right.begin(), right.end());
    right.erase(std::unique(right.begin(), right.end()), right.end());
  }
  return set;
}

std::string Dataset::fingerprint() const {
  std::string text;
  for (const std::string& stamp : state_->stamps) text += stamp;
  return text;
}

std::string Dataset::report() const {
  std::string text;
  for (size_t i = 0; i < state_->sources.size(); ++i)
    text += fmt::format("data: {}\n", state_->sources[i]->report());
  if (weighted()) {
    text += "data: samples are drawn with replacement, by source:";
    double sum = 0;
    for (const SourceConfig& source : state_->config.sources) sum += source.weight;
    for (const SourceConfig& source : state_->config.sources)
      text += fmt::format(" {:.3g}", source.weight / sum);
    text += fmt::format("; an epoch is {} draws\n", samples());
  } else {
    text += fmt::format("data: every one of {} samples once an epoch\n", samples());
  }
  text.pop_back();
  return text;
}

std::function<bool(std::string&)> vocabulary_texts(const Dataset& data, int64_t limit) {
  const int64_t samples = data.samples(), count = std::min(samples, limit);
  return [&data, samples, count, next = int64_t{0},
          pending = std::vector<std::string>()](std::string& text) mutable {
    if (pending.empty()) {
      if (next == count) return false;
      RawSample sample = data.sample(next++ * samples / count);
      pending = std::move(sample.positives);
      pending.push_back(std::move(sample.query));
    }
    text = std::move(pending.back());
    pending.pop_back();
    return true;
  };
}

}  // namespace amur
