#include "src/train/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/train/data/json_tokenizer.h"
#include "src/train/data/ngram_tokenizer.h"
#include "src/train/data/sentencepiece_model.h"
#include "src/train/data/tokenizer_json.h"
#include "src/train/data/unigram_lattice.h"

namespace amur {
namespace {

namespace sp = sentencepiece;

constexpr int kLogErrorsOnly = 2;
// A text is read up to this many bytes for every token it may have; no piece is as long.
constexpr int64_t kBytesPerToken = 64;
constexpr size_t kMaxTrainingBytes = 4096;

// At most `limit` bytes, never ending inside a character.
std::string_view cut_at(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80) --limit;
  return text.substr(0, limit);
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string bytes, const std::string& origin) : bytes_(std::move(bytes)) {
    const auto status = processor_.LoadFromSerializedProto(bytes_);
    if (bytes_.empty() || !status.ok())
      throw IoError("{} is not a SentencePiece model ({})", origin,
                    bytes_.empty() ? "it is empty" : status.ToString());
    markers_ = (processor_.bos_id() >= 0) + (processor_.eos_id() >= 0);
    // Only unigram models have segmentations to choose from.
    std::vector<std::vector<int>> best;
    if (processor_.NBestEncode("a", 1, &best).ok()) index_pieces();
    for (int byte = 0; byte < 256; ++byte) {
      const int id = processor_.PieceToId(fmt::format("<0x{:02X}>", byte));
      if (!processor_.IsByte(id)) break;
      byte_ids_.push_back(id);
    }
  }

  TokenizerKind tokenizer_kind() const override { return TokenizerKind::sentencepiece; }
  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  const std::string& serialised() const override { return bytes_; }

  bool encode(std::string_view text, int64_t max_length, std::vector<int32_t>& ids) const override {
    const std::string_view head = head_of(text, max_length);
    std::vector<int> content;
    check(processor_.Encode({head.data(), head.size()}, &content));
    return append(content, max_length, head.size() < text.size(), ids);
  }

  bool encode_sampled(std::string_view text, int64_t max_length, double alpha, RandomKey key,
                      std::vector<int32_t>& ids) const override {
    if (!lattice_)
      throw UsageError(
          "data.subword_sampling needs a unigram vocabulary, and this tokenizer model is "
          "of another kind; set it to 0");
    const std::string_view head = head_of(text, max_length);
    const std::string normal = normalised(head);
    std::vector<int> content;
    bool after_unknown = false;  // a run of unknown characters is one token
    for (const UnigramLattice::Part& part : lattice_->sample(normal, alpha, key)) {
      const bool unknown = part.id == UnigramLattice::kUnknown;
      if (!unknown) {
        content.push_back(part.id);
      } else if (!byte_ids_.empty()) {
        for (const char c : std::string_view(normal).substr(part.first, part.length))
          content.push_back(byte_ids_.at(static_cast<unsigned char>(c)));
      } else if (!after_unknown) {
        content.push_back(processor_.unk_id());
      }
      after_unknown = unknown;
    }
    return append(content, max_length, head.size() < text.size(), ids);
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::vector<int> content;
    for (const int32_t id : ids) {
      AMUR_CHECK(id >= 0 && id < vocab_size(), "token {} of a vocabulary of {}", id, vocab_size());
      if (!processor_.IsControl(id)) content.push_back(id);
    }
    std::string text;
    check(processor_.Decode(content, &text));
    return text;
  }

 private:
  static void check(const sp::util::Status& status) {
    AMUR_CHECK(status.ok(), "SentencePiece: {}", status.ToString());
  }

  static std::string_view head_of(std::string_view text, int64_t max_length) {
    return cut_at(text, static_cast<size_t>(max_length * kBytesPerToken));
  }

  void index_pieces() {
    std::vector<UnigramLattice::Piece> pieces;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsUnused(id) ||
          processor_.IsByte(id))
        continue;
      pieces.push_back({processor_.IdToPiece(id), id, double{processor_.GetScore(id)}});
    }
    lattice_.emplace(pieces);
  }

  // The text as SentencePiece normalises it, which is what its pieces spell.
  std::string normalised(std::string_view text) const {
    const auto encoded = processor_.EncodeAsImmutableProto({text.data(), text.size()});
    std::string normal;
    for (size_t i = 0; i < encoded.pieces_size(); ++i) {
      const auto piece = encoded.pieces(static_cast<int>(i));
      const auto id = static_cast<int>(piece.id());
      const auto byte = std::find(byte_ids_.begin(), byte_ids_.end(), id);
      if (byte != byte_ids_.end())
        normal.push_back(static_cast<char>(byte - byte_ids_.begin()));
      else
        normal += piece.piece();
    }
    return normal;
  }

  bool append(const std::vector<int>& content, int64_t max_length, bool already_cut,
              std::vector<int32_t>& ids) const {
    AMUR_CHECK(max_length > markers_, "{} tokens leave no room for a text", max_length);
    const auto room = static_cast<size_t>(max_length - markers_);
    const size_t kept = std::min(content.size(), room);
    if (processor_.bos_id() >= 0) ids.push_back(processor_.bos_id());
    ids.insert(ids.end(), content.begin(), content.begin() + static_cast<std::ptrdiff_t>(kept));
    // A text of characters that normalisation removes is still one token.
    if (kept == 0 && markers_ == 0) ids.push_back(processor_.unk_id());
    if (processor_.eos_id() >= 0) ids.push_back(processor_.eos_id());
    return already_cut || kept < content.size();
  }

  std::string bytes_;
  sp::SentencePieceProcessor processor_;
  int64_t markers_ = 0;
  std::optional<UnigramLattice> lattice_;
  std::vector<int> byte_ids_;  // of <0x00>..<0xFF>, or none
};

// Feeds the trainer; an exception of the caller's function is kept, because it must not pass
// through the library.
class Feed final : public sp::SentenceIterator {
 public:
  explicit Feed(const std::function<bool(std::string&)>& next) : next_(next) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return text_; }
  sp::util::Status status() const override { return {}; }
  void Next() override {
    try {
      done_ = !next_(text_);
    } catch (...) {
      failure_ = std::current_exception();
      done_ = true;
    }
    if (done_) return;
    text_ = cut_at(text_, kMaxTrainingBytes);
    ++texts_;
  }
  int64_t texts() const { return texts_; }
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const std::function<bool(std::string&)>& next_;
  std::string text_;
  bool done_ = false;
  int64_t texts_ = 0;
  std::exception_ptr failure_;
};

}  // namespace

const char* name_of(TokenizerKind kind) {
  switch (kind) {
    case TokenizerKind::ngrams:
      return "ngrams";
    case TokenizerKind::wordpiece:
      return "wordpiece";
    case TokenizerKind::bpe:
      return "bpe";
    case TokenizerKind::unigram:
      return "unigram";
    default:
      return "sentencepiece";
  }
}

std::unique_ptr<Tokenizer> Tokenizer::train(const DataConfig& config,
                                            const std::function<bool(std::string&)>& next) {
  if (config.tokenizer == TokenizerKind::ngrams) return make_ngram_tokenizer(config.vocab_size);
  if (config.tokenizer != TokenizerKind::sentencepiece)
    throw UsageError(
        "data.tokenizer {} is not trained here: set data.tokenizer_model to a Hugging Face "
        "tokenizer.json",
        name_of(config.tokenizer));
  const auto start = std::chrono::steady_clock::now();
  Log::info("vocabulary: training {} pieces", config.vocab_size);
  Feed feed(next);
  std::string bytes;
  // The result depends on the number of threads (they sum counts in their order) but not on how
  // many cores there are, so the number is fixed.
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "unigram"},
      {"vocab_size", std::to_string(config.vocab_size)},
      {"hard_vocab_limit", "false"},
      {"character_coverage", fmt::format("{}", config.character_coverage)},
      {"normalization_rule_name", config.lower_case ? "nmt_nfkc_cf" : "nmt_nfkc"},
      {"max_sentence_length", std::to_string(kMaxTrainingBytes)},
      {"seed_sentencepiece_size", std::to_string(std::max<int64_t>(200000, 4 * config.vocab_size))},
      {"num_threads", "4"},
      {"minloglevel", std::to_string(kLogErrorsOnly)},
  };
  const auto status = sp::SentencePieceTrainer::Train(options, &feed, &bytes);
  feed.rethrow();
  if (!status.ok())
    throw UsageError(
        "the vocabulary cannot be trained on {} texts (data.vocab_size {}, "
        "data.character_coverage {}): {}",
        feed.texts(), config.vocab_size, config.character_coverage, status.ToString());
  round_sentencepiece_scores(bytes);
  auto tokenizer = from_bytes(std::move(bytes), "the trained vocabulary");
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  Log::info("vocabulary: {} pieces from {} texts in {:.0f} s", tokenizer->vocab_size(),
            feed.texts(), elapsed.count());
  return tokenizer;
}

std::unique_ptr<Tokenizer> Tokenizer::from_bytes(std::string bytes, const std::string& origin) {
  if (auto ngrams = read_ngram_tokenizer(bytes)) return ngrams;
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && bytes[first] == '{') {
    auto model = sentencepiece_model_of(bytes, origin);
    if (!model) return make_json_tokenizer(std::move(bytes), origin);
    bytes = std::move(*model);
  }
  return std::make_unique<SentencePieceTokenizer>(std::move(bytes), origin);
}

}  // namespace amur
