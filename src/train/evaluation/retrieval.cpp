#include "src/train/evaluation/retrieval.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <unordered_map>

#include "src/core/log.h"
#include "src/train/agreement.h"
#include "src/train/data/line_format.h"
#include "src/train/data/pair_source.h"
#include "src/train/evaluation/input.h"
#include "src/train/evaluation/ranking.h"
#include "src/train/stopwatch.h"
#include "src/train/text_windows.h"

namespace amur {
namespace {

using LineJson = nlohmann::json;

// What a line of corpus.jsonl or queries.jsonl says, or why it says nothing.
std::string parse_entry(std::string_view line, std::string& id, std::string& text) {
  const LineJson entry =
      LineJson::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!entry.is_object()) return "not a JSON object";
  const auto name = entry.find("_id"), body = entry.find("text"), title = entry.find("title");
  if (name == entry.end()) return "no \"_id\"";
  if (name->is_number_integer())
    id = name->dump();
  else if (name->is_string())
    id = name->get<std::string>();
  else
    return "\"_id\" is not a text";
  if (id.empty()) return "\"_id\" is empty";
  if (body == entry.end() || !body->is_string()) return "no \"text\"";
  if (title != entry.end() && !title->is_string() && !title->is_null())
    return "\"title\" is not a text";
  const bool titled = title != entry.end() && title->is_string();
  text = trimmed(titled ? fmt::format("{} {}", title->get_ref<const std::string&>(),
                                      body->get_ref<const std::string&>())
                        : body->get<std::string>());
  return "";
}

// The entries of a file by number and by id.
class Entries {
 public:
  explicit Entries(const std::string& path) : path_(plain_or_gzip(path)) {
    text_ = TextBytes::open(path_);
    std::string id, ignored;
    read_lines(text_, path_, [&](std::string_view line, size_t offset, int64_t) {
      if (std::string reason = parse_entry(line, id, ignored); !reason.empty()) return reason;
      if (offsets_.size() == std::numeric_limits<int32_t>::max())
        throw UsageError("{}: more than 2^31 entries", path_);
      const auto [at, added] = numbers_.try_emplace(id, static_cast<int32_t>(offsets_.size()));
      if (!added) return fmt::format("the id '{}' is there a second time", id);
      offsets_.push_back(offset);
      return std::string();
    });
    if (offsets_.empty()) throw UsageError("{} is empty", path_);
  }

  const std::string& path() const { return path_; }
  int32_t size() const { return static_cast<int32_t>(offsets_.size()); }
  // -1: there is none.
  int32_t find(std::string_view id) const {
    const auto found = numbers_.find(std::string(id));
    return found == numbers_.end() ? -1 : found->second;
  }
  std::string text(int64_t number) const {
    std::string id, text;
    const auto at = static_cast<size_t>(number);
    if (const std::string reason = parse_entry(line_at(text_.view(), offsets_[at]), id, text);
        !reason.empty())
      throw IoError("{} changed while it was in use: at byte {}, {}", path_, offsets_[at], reason);
    if (number % 4096 == 4095) text_.release();
    return text;
  }
  // Ids by number.
  std::vector<std::string_view> ids() const {
    std::vector<std::string_view> ids(offsets_.size());
    for (const auto& [id, number] : numbers_) ids[static_cast<size_t>(number)] = id;
    return ids;
  }

 private:
  std::string path_;
  TextBytes text_;
  std::vector<size_t> offsets_;
  std::unordered_map<std::string, int32_t> numbers_;
};

// What every rank knows of the task. Queries are numbered anew: those that count.
struct Task {
  std::vector<int32_t> tie_order;  // place of each document by descending id
  std::vector<int32_t> left_out;   // per query: a document, or -1
  // Judgements of query q: [first[q], first[q + 1]), by ascending document.
  std::vector<int32_t> first, document, relevance;

  int64_t queries() const { return std::ssize(left_out); }
  int64_t documents() const { return std::ssize(tie_order); }
  void share(Communicator& world) {
    for (auto* values : {&tie_order, &left_out, &first, &document, &relevance})
      broadcast(*values, world);
  }
  std::span<const int32_t> judged(int64_t query) const {
    const auto q = static_cast<size_t>(query);
    return std::span(relevance).subspan(static_cast<size_t>(first[q]),
                                        static_cast<size_t>(first[q + 1] - first[q]));
  }
  int32_t relevance_of(int64_t query, int32_t hit) const {
    const auto q = static_cast<size_t>(query);
    const auto end = document.begin() + first[q + 1];
    const auto at = std::lower_bound(document.begin() + first[q], end, hit);
    return at != end && *at == hit ? relevance[static_cast<size_t>(at - document.begin())] : 0;
  }
};

// The folder as rank 0 reads it.
class Folder {
 public:
  Folder(const RetrievalOptions& options, Task& task)
      : queries_(in(options, "queries.jsonl")), corpus_(in(options, "corpus.jsonl")) {
    const std::string path = plain_or_gzip(in(options, "qrels/" + options.split + ".tsv"));
    std::unordered_map<int32_t, std::unordered_map<int32_t, int32_t>> judged;
    read_lines(TextBytes::open(path), path, [&](std::string_view line, size_t, int64_t number) {
      return read_judgement(line, number, judged);
    });
    if (judged.empty()) throw UsageError("{} holds no judgements", path);
    choose_queries(judged, path, task);
    order_documents(task);
  }

  std::string query(int64_t i) const { return queries_.text(numbers_[static_cast<size_t>(i)]); }
  std::string document(int64_t i) const { return corpus_.text(i); }

 private:
  static std::string in(const RetrievalOptions& options, const std::string& name) {
    return (std::filesystem::path(options.folder) / name).string();
  }

  using Judgements = std::unordered_map<int32_t, std::unordered_map<int32_t, int32_t>>;

  std::string read_judgement(std::string_view line, int64_t number, Judgements& judged) const {
    const auto fields = tsv_fields(line);
    int32_t relevance = 0;
    if (fields.size() != 3)
      return fmt::format("{} columns, wanted 3: query id, corpus id, relevance", fields.size());
    if (!parse_number(fields[2], relevance)) {
      if (number == 1) return "";  // the heading
      return fmt::format("the relevance '{}' is not a whole number", fields[2]);
    }
    const int32_t query = queries_.find(fields[0]), document = corpus_.find(fields[1]);
    if (query < 0) return fmt::format("the query '{}' is not in {}", fields[0], queries_.path());
    if (document < 0)
      return fmt::format("the document '{}' is not in {}", fields[1], corpus_.path());
    const auto [at, added] = judged[query].try_emplace(document, relevance);
    if (!added && at->second != relevance)
      return fmt::format("query '{}' and document '{}' were given relevance {} before", fields[0],
                         fields[1], at->second);
    return "";
  }

  // Queries with a relevant document, in the order of their file.
  void choose_queries(const Judgements& judged, const std::string& path, Task& task) {
    const auto query_ids = queries_.ids();
    int64_t hopeless = 0, alike = 0;
    task.first.push_back(0);
    for (int32_t q = 0; q < queries_.size(); ++q) {
      const auto found = judged.find(q);
      if (found == judged.end()) continue;
      std::vector<std::pair<int32_t, int32_t>> sorted(found->second.begin(), found->second.end());
      if (std::none_of(sorted.begin(), sorted.end(), [](auto& p) { return p.second > 0; })) {
        ++hopeless;
        continue;
      }
      std::sort(sorted.begin(), sorted.end());
      for (const auto& [document, relevance] : sorted) {
        task.document.push_back(document);
        task.relevance.push_back(relevance);
      }
      task.first.push_back(static_cast<int32_t>(task.document.size()));
      const int32_t own = corpus_.find(query_ids[static_cast<size_t>(q)]);
      const bool out = own >= 0 && !found->second.contains(own);
      task.left_out.push_back(out ? own : -1);
      alike += out;
      numbers_.push_back(q);
    }
    if (numbers_.empty())
      throw UsageError("{} names no relevant document (a relevance above 0) for any query", path);
    if (hopeless > 0)
      Log::info("{} queries of {} have no relevant document and do not count", hopeless, path);
    if (alike > 0)
      Log::info("{} queries have the id of a document, which is left out of their ranking", alike);
  }

  void order_documents(Task& task) const {
    const auto ids = corpus_.ids();
    std::vector<int32_t> order(ids.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return ids[static_cast<size_t>(a)] > ids[static_cast<size_t>(b)];
    });
    task.tie_order.resize(ids.size());
    for (size_t place = 0; place < order.size(); ++place)
      task.tie_order[static_cast<size_t>(order[place])] = static_cast<int32_t>(place);
  }

  Entries queries_, corpus_;
  std::vector<int32_t> numbers_;  // in queries_, of the queries that count
};

}  // namespace

TaskScores evaluate_retrieval(const RetrievalOptions& options, TextEmbedder& embedder,
                              Communicator& world) {
  Stopwatch watch;
  Task task;
  std::unique_ptr<Folder> folder;
  read_on_first_rank(world, [&] { folder = std::make_unique<Folder>(options, task); });
  task.share(world);
  const int64_t n = task.queries(), m = task.documents();
  Log::info("{} queries over {} documents", n, m);

  const auto query_text = [&](int64_t i) { return options.query_prefix + folder->query(i); };
  const auto document_text = [&](int64_t i) {
    return options.document_prefix + folder->document(i);
  };
  const Tensor queries = embed_all(numbered_texts(n, query_text), n, 0, embedder, world);
  TopDocuments top(queries, task.tie_order, task.left_out, world);
  embed_windows(numbered_texts(m, document_text), 1, embedder, world,
                [&](const TextWindow& window) { top.add(window.rows, window.first); });

  constexpr auto kMetrics = static_cast<int64_t>(kRankingMetrics.size());
  Tensor values = Tensor::zeros({n, kMetrics}, DType::f64);
  for (int64_t q = 0; q < n; ++q) {
    if (!top.mine(q)) continue;
    std::vector<int32_t> ranked;
    for (const Hit& hit : top.of(q)) ranked.push_back(task.relevance_of(q, hit.document));
    ranking_metrics(ranked, task.judged(q),
                    {values.as<double>() + q * kMetrics, kRankingMetrics.size()});
  }
  world.all_reduce(values, ReduceOp::sum);

  TaskScores result;
  result.task = "retrieval";
  result.set = std::filesystem::path(options.folder).lexically_normal().string();
  result.counts = {{"queries", n}, {"documents", m}};
  const std::vector<Interval> intervals = bootstrap_means(values, world);
  for (size_t k = 0; k < kRankingMetrics.size(); ++k) {
    double sum = 0;
    for (int64_t q = 0; q < n; ++q)
      sum += values.as<double>()[q * kMetrics + static_cast<int64_t>(k)];
    result.scores.push_back({kRankingMetrics[k], sum / static_cast<double>(n), intervals[k]});
  }
  result.seconds = watch.elapsed();
  return result;
}

}  // namespace amur
