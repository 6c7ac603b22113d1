#include "src/train/growth/growth_proof.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/train/text_embedder.h"

namespace amur {
namespace {

constexpr double kBoundF32 = 5e-6, kBoundF64 = 1e-12;

// Words of consonants and vowels from a counter, which any vocabulary can cut up.
std::string made_up_text(RandomKey key) {
  static constexpr std::string_view kConsonants = "bcdfghjklmnprstvwz", kVowels = "aeiou";
  std::string text;
  uint64_t draw = 0;
  const uint64_t words = 1 + key.below(draw++, 24);
  for (uint64_t w = 0; w < words; ++w) {
    if (w > 0) text += ' ';
    const uint64_t syllables = 1 + key.below(draw++, 4);
    for (uint64_t s = 0; s < syllables; ++s) {
      text += kConsonants[key.below(draw++, kConsonants.size())];
      text += kVowels[key.below(draw++, kVowels.size())];
    }
  }
  return text;
}

ReferenceRows rows_of(ConstTensorView z) {
  ReferenceRows r;
  r.rows = z.rows();
  r.width = z.columns();
  r.values.resize(static_cast<size_t>(z.elements()));
  dispatch_f32_f64(z.dtype(), "probe",
                   [&]<class T>() { std::copy_n(z.as<T>(), z.elements(), r.values.begin()); });
  return r;
}

double cosine(const std::vector<double>& z, int64_t width, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < width; ++k)
    sum += z[static_cast<size_t>(i * width + k)] * z[static_cast<size_t>(j * width + k)];
  return sum;
}

}  // namespace

bool GrowthProof::pass() const {
  // Not "greater than the bound": a difference that is no number does not pass.
  return max_difference <= bound && max_cosine_difference <= bound && std::isfinite(loss_before) &&
         std::isfinite(loss_after);
}

ProbePairs probe_pairs(const std::string& path, int64_t made_up) {
  ProbePairs probe;
  if (path.empty()) {
    const RandomKey key = RandomKey(0).fold(static_cast<uint64_t>(RandomPurpose::probe));
    for (uint64_t i = 0; i < static_cast<uint64_t>(made_up); ++i) {
      probe.queries.push_back(made_up_text(key.fold(2 * i)));
      probe.documents.push_back(made_up_text(key.fold(2 * i + 1)));
    }
    return probe;
  }
  std::ifstream file(path);
  if (!file) throw IoError("--probe: cannot open '{}'", path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    const size_t tab = line.find('\t');
    probe.queries.push_back(line.substr(0, tab));
    probe.documents.push_back(
        tab == std::string::npos ? line : line.substr(tab + 1, line.find('\t', tab + 1) - tab - 1));
  }
  if (probe.queries.empty()) throw UsageError("--probe: '{}' holds no text", path);
  return probe;
}

ProbeEmbeddings embed_probe(EmbeddingModel& model, const Tokenizer& tokenizer, const Config& config,
                            const ProbePairs& probe, Communicator& dp, Runtime& runtime) {
  TextEmbedder embedder(model, tokenizer, config, dp, runtime);
  ProbeEmbeddings e;
  e.batch.queries = rows_of(embedder.embed(probe.queries, 0));
  e.batch.documents = rows_of(embedder.embed(probe.documents, 1));
  for (size_t i = 0; i < probe.queries.size(); ++i) {
    e.batch.query_ids.push_back(2 * i);
    e.batch.document_ids.push_back(2 * i + 1);
    e.batch.positive.push_back(static_cast<int32_t>(i));
  }
  e.batch.other_positives.resize(probe.queries.size());
  e.loss =
      reference_loss_value(config.loss, model.log_scale_value(), model.loss_bias_value(), e.batch);
  return e;
}

std::vector<double> all_rows(const ProbeEmbeddings& e) {
  std::vector<double> all = e.batch.queries.values;
  all.insert(all.end(), e.batch.documents.values.begin(), e.batch.documents.values.end());
  return all;
}

GrowthProof compare_embeddings(const ProbeEmbeddings& a, const ProbeEmbeddings& b,
                               DType parameters) {
  GrowthProof proof;
  proof.bound = parameters == DType::f64 ? kBoundF64 : kBoundF32;
  proof.loss_before = a.loss;
  proof.loss_after = b.loss;
  proof.texts = a.batch.queries.rows + a.batch.documents.rows;
  const auto larger = [](double x, double y) { return y <= x ? x : y; };  // NaN wins
  const std::vector<double> old_rows = all_rows(a), new_rows = all_rows(b);
  const int64_t old_width = a.batch.queries.width, new_width = b.batch.queries.width;
  proof.embeddings_compared = old_width == new_width;
  if (proof.embeddings_compared) {
    double sum = 0;
    for (size_t i = 0; i < old_rows.size(); ++i) {
      const double difference = std::abs(new_rows[i] - old_rows[i]);
      proof.max_difference = larger(proof.max_difference, difference);
      sum += difference;
    }
    proof.mean_difference = sum / static_cast<double>(old_rows.size());
  }
  for (int64_t i = 0; i < proof.texts; ++i)
    for (int64_t j = 0; j <= i; ++j)
      proof.max_cosine_difference =
          larger(proof.max_cosine_difference,
                 std::abs(cosine(new_rows, new_width, i, j) - cosine(old_rows, old_width, i, j)));
  return proof;
}

std::string to_text(const GrowthProof& p) {
  std::string out = fmt::format("{} probe texts, bound {:g}\n", p.texts, p.bound);
  if (p.embeddings_compared)
    out += fmt::format("  embeddings: largest difference {:.3g}, mean {:.3g}\n", p.max_difference,
                       p.mean_difference);
  out += fmt::format("  cosines: largest difference {:.3g}\n", p.max_cosine_difference);
  out += fmt::format("  loss: {:.9g} -> {:.9g}, difference {:.3g}\n", p.loss_before, p.loss_after,
                     p.loss_after - p.loss_before);
  return out;
}

std::string to_json(const GrowthProof& p) {
  nlohmann::ordered_json j{{"texts", p.texts}};
  if (p.embeddings_compared) {
    j["max_difference"] = p.max_difference;
    j["mean_difference"] = p.mean_difference;
  }
  j["max_cosine_difference"] = p.max_cosine_difference;
  j["loss_before"] = p.loss_before;
  j["loss_after"] = p.loss_after;
  j["bound"] = p.bound;
  j["pass"] = p.pass();
  return j.dump();
}

}  // namespace amur
