#include "src/train/growth/compare.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "comm/runtime.h"
#include "src/train/session.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const GaussianDistances& d) {
  return {{"kl", d.kl}, {"bhattacharyya", d.bhattacharyya}, {"wasserstein", d.wasserstein}};
}

std::string line_of(const char* what, const GaussianDistances& d) {
  return fmt::format("  {:<32} KL {:.9g}, Bhattacharyya {:.9g}, W2 {:.9g}\n", what, d.kl,
                     d.bhattacharyya, d.wasserstein);
}

double relative(double a, double b) {
  const double size = std::max(std::abs(a), std::abs(b));
  return size == 0 ? 0 : std::abs(a - b) / size;
}

}  // namespace

CompareResult compare(const CompareOptions& options, CommBackend backend, Runtime& runtime) {
  runtime.set_phase("reading the checkpoints");
  const auto grid = start_grid(checkpoint_config(options.first, {}), backend, runtime);
  TrainedModel first = load_trained_model(options.first, {}, *grid),
               second = load_trained_model(options.second, {}, *grid);
  constexpr int64_t kPairsPerCoordinate = 10;
  const ProbePairs probe =
      probe_pairs(options.probe, kPairsPerCoordinate * std::max(first.model->embedding_size(),
                                                                second.model->embedding_size()));
  runtime.set_phase("comparing the two models");
  const auto embedded = [&](TrainedModel& t) {
    return embed_probe(*t.model, *t.tokenizer, t.config, probe, grid->dp(), runtime);
  };
  const ProbeEmbeddings a = embedded(first), b = embedded(second);
  CompareResult result;
  const bool exact = first.model->parameters_dtype() == DType::f64 &&
                     second.model->parameters_dtype() == DType::f64;
  result.function = compare_embeddings(a, b, exact ? DType::f64 : DType::f32);
  const auto sides = [&](const ProbeEmbeddings& e) {
    const int64_t width = e.batch.queries.width;
    return distances(gaussian_of(e.batch.queries.values, width, options.ridge),
                     gaussian_of(e.batch.documents.values, width, options.ridge));
  };
  result.of_first = sides(a);
  result.of_second = sides(b);
  result.largest_change =
      std::max({relative(result.of_first.kl, result.of_second.kl),
                relative(result.of_first.bhattacharyya, result.of_second.bhattacharyya),
                relative(result.of_first.wasserstein, result.of_second.wasserstein)});
  const int64_t width = a.batch.queries.width;
  if (result.function.embeddings_compared)
    result.between = distances(gaussian_of(all_rows(a), width, options.ridge),
                               gaussian_of(all_rows(b), width, options.ridge));
  return result;
}

std::string to_text(const CompareResult& r) {
  std::string out = to_text(r.function);
  out += r.function.pass() ? "the same function, within the bound\n" : "two functions\n";
  out += "embeddings as Gaussians\n";
  out += line_of("queries : documents, first", r.of_first);
  out += line_of("queries : documents, second", r.of_second);
  out += fmt::format("  largest relative difference {:.3g}\n", r.largest_change);
  if (r.between) out += line_of("first : second, all texts", *r.between);
  return out;
}

std::string to_json(const CompareResult& r) {
  Json j;
  j["function"] = Json::parse(to_json(r.function));
  j["first"] = json_of(r.of_first);
  j["second"] = json_of(r.of_second);
  j["largest_change"] = r.largest_change;
  if (r.between) j["between"] = json_of(*r.between);
  return j.dump(2);
}

}  // namespace amur
