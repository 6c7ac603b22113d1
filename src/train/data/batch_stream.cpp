#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <span>
#include <thread>

#include "src/core/error.h"
#include "src/train/data/data.h"
#include "src/train/data/pair_source.h"
#include "src/train/data/sample_order.h"

namespace amur {
namespace {

constexpr size_t kBatchesAhead = 2;
constexpr size_t kSamplesOfThread = 256;  // fewer are not worth starting one

// What a text is drawn with, besides its words.
struct Draw {
  int64_t epoch;
  int64_t sample;
  int32_t view;
  RandomKey fold_into(RandomKey key) const {
    return key.fold(static_cast<uint64_t>(epoch))
        .fold(static_cast<uint64_t>(sample))
        .fold(static_cast<uint64_t>(view));
  }
};

// Makes the batch at a position: a function of data, configuration, rank and position alone.
class BatchMaker {
 public:
  BatchMaker(const Dataset& data, const Tokenizer& tokenizer, const Config& config, int dp_rank,
             int dp_size)
      : data_(data),
        tokenizer_(tokenizer),
        config_(config),
        dp_rank_(dp_rank),
        dp_size_(dp_size),
        threads_(static_cast<size_t>(config.data.threads)),
        order_(data, config.train.seed, 0) {
    AMUR_CHECK(dp_rank >= 0 && dp_rank < dp_size, "rank {} of {}", dp_rank, dp_size);
    AMUR_CHECK(config.train.batch_size > 0, "a batch of {}", config.train.batch_size);
    // The markers at the ends of a text are not words.
    std::vector<int32_t> empty;
    tokenizer.encode("", config.model.max_length, empty);
    markers_ = static_cast<int64_t>(empty.size());
    if (markers_ > 0) first_marker_ = empty.front();
    if (markers_ > 0) last_marker_ = empty.back();
  }

  LocalBatch make(DataPosition start) {
    const int64_t samples = data_.samples();
    if (start.sample >= samples) {
      ++start.epoch;
      start.sample = 0;
    }
    if (start.epoch != order_.epoch()) order_ = SampleOrder(data_, config_.train.seed, start.epoch);
    const int64_t count = std::min(config_.train.batch_size, samples - start.sample);

    LocalBatch batch;
    batch.start = start;
    batch.end = {start.epoch, start.sample + count, start.samples_seen + count};
    batch.global_queries = count;
    std::vector<int64_t> ids(static_cast<size_t>(count)), bytes(ids.size());
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      ids[at] = order_(start.sample + i);
      bytes[at] = data_.text_bytes(ids[at]);
    }
    batch.other_first.push_back(0);
    std::vector<int64_t> own;
    for (const int32_t at : share_of_rank(bytes, dp_rank_, dp_size_))
      own.push_back(ids[static_cast<size_t>(at)]);
    const size_t threads =
        std::clamp<size_t>(own.size() / kSamplesOfThread, 1, std::max<size_t>(threads_, 1));
    std::vector<std::future<LocalBatch>> others;
    const auto part = [&](size_t k) {
      return std::span(own).subspan(own.size() * k / threads,
                                    own.size() * (k + 1) / threads - own.size() * k / threads);
    };
    for (size_t k = 1; k < threads; ++k)
      others.push_back(std::async(std::launch::async, [this, start, samples_of = part(k)] {
        LocalBatch some;
        some.start = start;
        add_samples(samples_of, some);
        return some;
      }));
    add_samples(part(0), batch);
    for (std::future<LocalBatch>& other : others) append(other.get(), batch);
    return batch;
  }

 private:
  void add_samples(std::span<const int64_t> ids, LocalBatch& batch) const {
    for (const int64_t id : ids) add_sample(id, batch);
  }

  // The samples of `other` behind those of `batch`.
  static void append(LocalBatch&& other, LocalBatch& batch) {
    const auto tokens = static_cast<int32_t>(batch.tokens.size());
    const auto documents = static_cast<int32_t>(batch.documents.size());
    const auto positives = static_cast<int32_t>(batch.other_positives.size());
    const auto move_units = [tokens](std::vector<TextUnit>& from, std::vector<TextUnit>& to) {
      for (TextUnit& unit : from) unit.first += tokens;
      to.insert(to.end(), from.begin(), from.end());
    };
    move_units(other.queries, batch.queries);
    move_units(other.documents, batch.documents);
    for (const int32_t at : other.positive) batch.positive.push_back(at + documents);
    for (const int32_t end : other.other_first) batch.other_first.push_back(end + positives);
    batch.tokens.insert(batch.tokens.end(), other.tokens.begin(), other.tokens.end());
    batch.other_positives.insert(batch.other_positives.end(), other.other_positives.begin(),
                                 other.other_positives.end());
    batch.truncated += other.truncated;
  }

  void add_sample(int64_t id, LocalBatch& batch) const {
    const int64_t epoch = batch.start.epoch;
    const RawSample sample = data_.sample(id);
    const SourceConfig& source = data_.source(data_.source_of(id));
    const size_t drawn = RandomKey(config_.train.seed)
                             .fold(static_cast<uint64_t>(RandomPurpose::positive_draw))
                             .fold(static_cast<uint64_t>(epoch))
                             .below(static_cast<uint64_t>(id), sample.positives.size());
    add_text(sample.query, source.query_prefix, {epoch, id, kViewQuery}, batch.queries, batch);
    batch.positive.push_back(static_cast<int32_t>(batch.documents.size()));
    add_text(sample.positives[drawn], source.document_prefix, {epoch, id, kViewPositive},
             batch.documents, batch);
    const auto negatives =
        std::min(static_cast<size_t>(config_.data.hard_negatives), sample.negatives.size());
    for (size_t k = 0; k < negatives; ++k)
      add_text(sample.negatives[k], source.document_prefix,
               {epoch, id, kViewFirstNegative + static_cast<int32_t>(k)}, batch.documents, batch);
    for (size_t k = 0; k < sample.positives.size(); ++k)
      if (k != drawn) batch.other_positives.push_back(text_identity(sample.positives[k]));
    batch.other_first.push_back(static_cast<int32_t>(batch.other_positives.size()));
  }

  void add_text(const std::string& text, const std::string& prefix, const Draw& draw,
                std::vector<TextUnit>& units, LocalBatch& batch) const {
    TextUnit unit;
    unit.sample = draw.sample;
    unit.view = draw.view;
    unit.first = static_cast<int32_t>(batch.tokens.size());
    unit.text_id = text_identity(text);
    const int64_t max_length = config_.model.max_length;
    const double alpha = config_.data.subword_sampling;
    const std::string prefixed = prefix + text;
    const RandomKey key(config_.train.seed);
    batch.truncated +=
        alpha > 0
            ? tokenizer_.encode_sampled(
                  prefixed, max_length, alpha,
                  draw.fold_into(key.fold(static_cast<uint64_t>(RandomPurpose::subword_sampling))),
                  batch.tokens)
            : tokenizer_.encode(prefixed, max_length, batch.tokens);
    if (config_.model.word_dropout > 0)
      drop_words(static_cast<size_t>(unit.first),
                 draw.fold_into(key.fold(static_cast<uint64_t>(RandomPurpose::word_dropout))),
                 batch.tokens);
    unit.length = static_cast<int32_t>(batch.tokens.size()) - unit.first;
    units.push_back(unit);
  }

  // Removes tokens between the markers, each with the configured probability, but never all.
  void drop_words(size_t first, RandomKey key, std::vector<int32_t>& tokens) const {
    size_t begin = first, end = tokens.size();
    if (begin < end && markers_ > 0 && tokens[begin] == first_marker_) ++begin;
    if (begin < end && markers_ > 0 && tokens[end - 1] == last_marker_) --end;
    if (end - begin < 2) return;
    size_t to = begin, likeliest = begin;
    double best = -1;
    for (size_t from = begin; from < end; ++from) {
      const double u = key.uniform(from - begin);
      if (u > best) {
        best = u;
        likeliest = from;
      }
      if (u >= config_.model.word_dropout) std::swap(tokens[to++], tokens[from]);
    }
    if (to == begin) std::swap(tokens[to++], tokens[likeliest]);
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(to),
                 tokens.begin() + static_cast<std::ptrdiff_t>(end));
  }

  const Dataset& data_;
  const Tokenizer& tokenizer_;
  const Config config_;
  int dp_rank_, dp_size_;
  size_t threads_;
  SampleOrder order_;
  int64_t markers_ = 0;
  int32_t first_marker_ = 0, last_marker_ = 0;
};

}  // namespace

struct BatchStream::State {
  State(const Dataset& data, const Tokenizer& tokenizer, const Config& config, int dp_rank,
        int dp_size)
      : maker(data, tokenizer, config, dp_rank, dp_size) {}

  void run(DataPosition position) {
    try {
      for (;;) {
        LocalBatch batch = maker.make(position);
        position = batch.end;
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || ready.size() < kBatchesAhead; });
        if (stop) return;
        ready.push_back(std::move(batch));
        changed.notify_all();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
      changed.notify_all();
    }
  }

  BatchMaker maker;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<LocalBatch> ready;
  std::exception_ptr failure;
  bool stop = false;
  std::thread thread;
};

BatchStream::BatchStream(const Dataset& data, const Tokenizer& tokenizer, const Config& config,
                         int dp_rank, int dp_size, DataPosition start)
    : state_(std::make_unique<State>(data, tokenizer, config, dp_rank, dp_size)) {
  state_->thread = std::thread([state = state_.get(), start] { state->run(start); });
}

BatchStream::~BatchStream() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

LocalBatch BatchStream::next() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return !state_->ready.empty() || state_->failure; });
  if (state_->ready.empty()) std::rethrow_exception(state_->failure);
  LocalBatch batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  state_->changed.notify_all();
  return batch;
}

int64_t BatchStream::batches_per_epoch(const Dataset& data, const Config& config) {
  return (data.samples() + config.train.batch_size - 1) / config.train.batch_size;
}

}  // namespace amur
