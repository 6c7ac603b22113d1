#include "src/train/verify_gradient.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "comm/runtime.h"
#include "kernels/elementwise.h"
#include "src/core/hash.h"
#include "src/train/loss/reference_loss.h"
#include "src/train/session.h"

namespace amur {
namespace {

constexpr int kDirections = 3;

// Gradients of rounded logits are compared with a reference that rounds the same embeddings, so
// what is left is the rounding of those gradients to bf16, 2^-8 at most each.
double bound_of(Precision precision, LossPrecision loss) {
  switch (precision) {
    case Precision::fp64:
      return 1e-12;
    case Precision::fp32:
      return loss == LossPrecision::bf16 ? 5e-3 : 1e-5;
    case Precision::bf16:
      return 5e-2;
  }
  return 0;
}

// Gradient buffers of a model, named as the sinks of its parameters.
class GradientBuffers {
 public:
  explicit GradientBuffers(EmbeddingModel& model) : model_(model) {
    for (Parameter& p : model.parameters()) {
      buffers_.push_back(
          Tensor::zeros(p.value.shape(), parameter_dtype(p.value.dtype()), model.device()));
      p.sink = buffers_.back();
      p.sink_scale = 1;
    }
  }
  ~GradientBuffers() {
    for (Parameter& p : model_.parameters()) p.sink = {};
  }
  GradientBuffers(const GradientBuffers&) = delete;
  GradientBuffers& operator=(const GradientBuffers&) = delete;

  Tensor& operator[](size_t i) { return buffers_[i]; }
  std::vector<double> in_double(size_t i) {
    Tensor wide(buffers_[i].shape(), DType::f64);
    Tensor staging;
    cast(on_host(buffers_[i], staging), wide);
    return {wide.as<double>(), wide.as<double>() + wide.elements()};
  }

 private:
  EmbeddingModel& model_;
  std::vector<Tensor> buffers_;
};

// The whole batch on one process: one chunk a tower, double precision, the reference loss.
class Reference {
 public:
  Reference(EmbeddingModel& model, const Config& config, const LocalBatch& batch)
      : model_(model), config_(config), batch_(batch) {
    const auto queries = static_cast<int32_t>(batch.queries.size());
    const auto documents = static_cast<int32_t>(batch.documents.size());
    Chunk all[2];
    for (int32_t u = 0; u < queries + documents; ++u) {
      const TextUnit& unit = u < queries ? batch.queries[static_cast<size_t>(u)]
                                         : batch.documents[static_cast<size_t>(u - queries)];
      Chunk& chunk = all[model.separate_towers() && u >= queries ? 1 : 0];
      chunk.units.push_back(u);
      chunk.tokens += unit.length;
    }
    const RandomKey key =
        RandomKey(config.train.seed).fold(static_cast<uint64_t>(RandomPurpose::dropout)).fold(0);
    for (const Chunk& chunk : all)
      if (!chunk.units.empty())
        packed_.push_back(std::make_unique<PackedChunk>(batch, chunk, &key));
    rows_.queries = {{}, queries, model.embedding_size()};
    rows_.documents = {{}, documents, model.embedding_size()};
    for (const TextUnit& u : batch.queries) rows_.query_ids.push_back(u.text_id);
    for (const TextUnit& u : batch.documents) rows_.document_ids.push_back(u.text_id);
    rows_.positive = batch.positive;
    for (size_t i = 0; i < batch.queries.size(); ++i)
      rows_.other_positives.emplace_back(batch.other_positives.begin() + batch.other_first[i],
                                         batch.other_positives.begin() + batch.other_first[i + 1]);
  }

  double loss() {
    embed(nullptr);
    return reference_loss_value(config_.loss, model_.log_scale_value(), model_.loss_bias_value(),
                                rows_);
  }

  // Also fills the gradient sinks of the model.
  ReferenceLoss loss_and_gradient(GradientBuffers& buffers) {
    embed(&saved_);
    ReferenceLoss result =
        reference_loss(config_.loss, model_.log_scale_value(), model_.loss_bias_value(), rows_);
    const int64_t width = model_.embedding_size();
    std::vector<double> dz = result.dq;
    dz.insert(dz.end(), result.dk.begin(), result.dk.end());
    size_t last = unit_count();
    for (size_t c = packed_.size(); c-- > 0;) {
      const ChunkView view = packed_[c]->view();
      const size_t first = last - static_cast<size_t>(view.sequences());
      Tensor dh({view.sequences(), width}, DType::f64);
      for (size_t u = first; u < last; ++u) {
        const double* z = unit_vectors_.data() + u * static_cast<size_t>(width);
        const double* g = dz.data() + u * static_cast<size_t>(width);
        const double along = std::inner_product(z, z + width, g, 0.0);
        double* out = dh.as<double>() + (u - first) * static_cast<size_t>(width);
        for (int64_t k = 0; k < width; ++k) out[k] = (g[k] - z[k] * along) / norms_[u];
      }
      model_.tower(static_cast<int>(c)).backward(context(view, &saved_), dh);
      last = first;
    }
    const ParameterSet& parameters = model_.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (&parameters[i] == &model_.log_scale()) buffers[i].as<double>()[0] = result.scale_gradient;
      if (&parameters[i] == model_.loss_bias()) buffers[i].as<double>()[0] = result.bias_gradient;
    }
    return result;
  }

 private:
  size_t unit_count() const { return batch_.queries.size() + batch_.documents.size(); }

  Context context(const ChunkView& view, SavedTensors* saved) {
    Context c;
    c.chunk = &view;
    c.saved = saved;
    c.scratch = &scratch_;
    c.dtype = DType::f64;
    c.training = true;
    return c;
  }

  void embed(SavedTensors* saved) {
    const int64_t width = model_.embedding_size();
    unit_vectors_.clear();
    norms_.clear();
    for (size_t c = 0; c < packed_.size(); ++c) {
      const ChunkView view = packed_[c]->view();
      Tensor h({view.sequences(), width}, DType::f64);
      model_.tower(static_cast<int>(c)).forward(context(view, saved), h);
      for (int64_t r = 0; r < view.sequences(); ++r) {
        const double* x = h.as<double>() + r * width;
        norms_.push_back(std::sqrt(std::inner_product(x, x + width, x, 0.0)));
        for (int64_t k = 0; k < width; ++k) unit_vectors_.push_back(x[k] / norms_.back());
      }
    }
    const auto split =
        unit_vectors_.begin() + static_cast<long>(batch_.queries.size()) * static_cast<long>(width);
    rows_.queries.values.assign(unit_vectors_.begin(), split);
    rows_.documents.values.assign(split, unit_vectors_.end());
  }

  EmbeddingModel& model_;
  const Config& config_;
  const LocalBatch& batch_;
  std::vector<std::unique_ptr<PackedChunk>> packed_;  // in unit order
  SavedTensors saved_, scratch_;
  std::vector<double> unit_vectors_, norms_;
  ReferenceBatch rows_;
};

// The rows of all ranks, as the reference loss takes them: for the negative controls.
ReferenceBatch gather_rows_of(const ContrastiveInput& input, Communicator& dp,
                              std::vector<int64_t>& query_counts) {
  ReferenceBatch all;
  query_counts = dp.gather(input.queries.rows());
  const std::vector<int64_t> document_counts = dp.gather(input.documents.rows());
  const auto gathered = [&](ConstTensorView local, std::span<const int64_t> counts) {
    Tensor wide(local.shape(), DType::f64);
    cast(local, wide);
    Tensor full({std::accumulate(counts.begin(), counts.end(), int64_t{0}), local.columns()},
                DType::f64);
    dp.all_gather(wide, full, counts);
    return ReferenceRows{
        {full.as<double>(), full.as<double>() + full.elements()}, full.shape()[0], full.shape()[1]};
  };
  const auto gathered_ids = [&](std::span<const uint64_t> ids, std::span<const int64_t> counts) {
    const ConstTensorView local(ids.data(), {static_cast<int64_t>(ids.size())}, DType::i64);
    std::vector<uint64_t> full(
        static_cast<size_t>(std::accumulate(counts.begin(), counts.end(), int64_t{0})));
    dp.all_gather(local, TensorView(full.data(), {static_cast<int64_t>(full.size())}, DType::i64),
                  counts);
    return full;
  };
  all.queries = gathered(input.queries, query_counts);
  all.documents = gathered(input.documents, document_counts);
  all.query_ids = gathered_ids(input.query_ids, query_counts);
  all.document_ids = gathered_ids(input.document_ids, document_counts);
  const int64_t offset =
      std::accumulate(document_counts.begin(), document_counts.begin() + dp.rank(), int64_t{0});
  std::vector<uint64_t> positive;
  for (int32_t p : input.positive) positive.push_back(static_cast<uint64_t>(p + offset));
  for (uint64_t p : gathered_ids(positive, query_counts))
    all.positive.push_back(static_cast<int32_t>(p));
  all.other_positives.resize(all.query_ids.size());
  return all;
}

// The queries first..first+count-1 of a batch alone, with the documents between their positives.
ReferenceBatch part_of(const ReferenceBatch& whole, int64_t first, int64_t count,
                       int64_t& first_document) {
  ReferenceBatch part;
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  first_document = whole.positive[at(first)];
  const int64_t end =
      first + count < whole.queries.rows ? whole.positive[at(first + count)] : whole.documents.rows;
  const auto rows = [&](const ReferenceRows& from, int64_t begin, int64_t stop) {
    return ReferenceRows{
        {from.values.begin() + begin * from.width, from.values.begin() + stop * from.width},
        stop - begin,
        from.width};
  };
  part.queries = rows(whole.queries, first, first + count);
  part.documents = rows(whole.documents, first_document, end);
  for (int64_t i = first; i < first + count; ++i) {
    part.query_ids.push_back(whole.query_ids[at(i)]);
    part.positive.push_back(static_cast<int32_t>(whole.positive[at(i)] - first_document));
  }
  part.document_ids.assign(whole.document_ids.begin() + first_document,
                           whole.document_ids.begin() + end);
  part.other_positives.resize(at(count));
  return part;
}

// A loss stage with a mistake in it.
ContrastiveOutput faulty_loss(GradientFault fault, const Config& config, EmbeddingModel& model,
                              const ContrastiveInput& input, TensorView dq, TensorView dk,
                              Communicator& dp) {
  const double t = model.log_scale_value(), b = model.loss_bias_value();
  if (fault == GradientFault::temperature_in_replay) {
    ContrastiveOutput out = contrastive_loss(config.loss, t, b, input, dq, dk, dp);
    out.scale_gradient *= 2;
    return out;
  }
  std::vector<int64_t> counts;
  const ReferenceBatch whole = gather_rows_of(input, dp, counts);
  const auto n = whole.queries.rows;
  ReferenceLoss wrong;
  if (fault == GradientFault::mean_of_local_means) {
    // Only uneven ranks go wrong: where they are even, two uneven parts stand for them.
    if (std::equal(counts.begin() + 1, counts.end(), counts.begin())) counts = {n / 3, n - n / 3};
    std::vector<double> weights;
    for (int64_t count : counts)
      weights.insert(weights.end(), static_cast<size_t>(count),
                     1.0 / (static_cast<double>(counts.size()) * static_cast<double>(count)));
    wrong = reference_loss(config.loss, t, b, whole, weights);
  } else {
    wrong.dq.assign(whole.queries.values.size(), 0);
    wrong.dk.assign(whole.documents.values.size(), 0);
    constexpr int64_t kParts = 4;
    for (int64_t part = 0; part < kParts; ++part) {
      const int64_t first = n * part / kParts, count = n * (part + 1) / kParts - first;
      if (count == 0) continue;
      int64_t first_document = 0;
      const ReferenceBatch alone = part_of(whole, first, count, first_document);
      const ReferenceLoss own = reference_loss(config.loss, t, b, alone);
      const auto width = whole.queries.width;
      for (size_t k = 0; k < own.dq.size(); ++k)
        wrong.dq[static_cast<size_t>(first * width) + k] = own.dq[k] / kParts;
      for (size_t k = 0; k < own.dk.size(); ++k)
        wrong.dk[static_cast<size_t>(first_document * width) + k] = own.dk[k] / kParts;
      wrong.loss += own.loss / kParts;
      wrong.scale_gradient += own.scale_gradient / kParts;
      wrong.bias_gradient += own.bias_gradient / kParts;
    }
  }
  const auto keep_own = [&](std::vector<double>& values, TensorView out) {
    const std::vector<int64_t> rows = dp.gather(out.rows());
    const int64_t first = std::accumulate(rows.begin(), rows.begin() + dp.rank(), int64_t{0});
    cast(ConstTensorView(values.data() + first * out.columns(), out.shape(), DType::f64), out);
  };
  keep_own(wrong.dq, dq);
  keep_own(wrong.dk, dk);
  ContrastiveOutput out;
  out.loss = wrong.loss;
  out.scale_gradient = wrong.scale_gradient;
  out.bias_gradient = wrong.bias_gradient;
  out.queries = n;
  out.documents = whole.documents.rows;
  return out;
}

struct ReferenceGradient {
  ReferenceLoss loss;
  std::vector<std::vector<double>> tensors;
  double rms = 0;  // over all gradients of weights
};

// Of a reference with that model.
ReferenceGradient gradient_of(Reference& reference, EmbeddingModel& exact) {
  ReferenceGradient expected;
  double squares = 0, count = 0;
  GradientBuffers buffers(exact);
  expected.loss = reference.loss_and_gradient(buffers);
  for (size_t i = 0; i < exact.parameters().size(); ++i) {
    expected.tensors.push_back(buffers.in_double(i));
    if (exact.parameters()[i].kind == ParamKind::scalar) continue;
    squares += sum_of_squares(buffers[i]);
    count += static_cast<double>(buffers[i].elements());
  }
  expected.rms = std::sqrt(squares / std::max(count, 1.0));
  return expected;
}

double norm_of(const std::vector<double>& v) {
  return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
}

// `got` is this rank's part of the tensor, `want` the whole. Collective over tp.
double relative_error(const Parameter& p, const std::vector<double>& got,
                      const std::vector<double>& want, const ReferenceGradient& reference,
                      Communicator& tp) {
  double squares = 0;
  for_each_element(
      slab_of(p, tp.rank(), tp.size()), p.global_shape(), [&](int64_t local, int64_t global) {
        const double d = got[static_cast<size_t>(local)] - want[static_cast<size_t>(global)];
        squares += d * d;
      });
  if (p.sharding.axis >= 0) squares = tp.sum(squares);
  const double difference = std::sqrt(squares);
  if (p.kind == ParamKind::scalar)
    return difference / std::max(p.name == "loss.bias" ? reference.loss.bias_magnitude
                                                       : reference.loss.scale_magnitude,
                                 1e-300);
  const double floor = 1e-3 * std::sqrt(static_cast<double>(want.size())) * reference.rms;
  return difference / (p.zero_gradient ? floor : std::max(norm_of(want), floor));
}

// Central differences of the reference's loss along random directions of one tensor.
double direction_error(EmbeddingModel& model, Reference& reference, size_t index,
                       const std::vector<double>& gradient, double floor) {
  Parameter& p = model.parameters()[index];
  const auto n = static_cast<size_t>(p.value.elements());
  double* values = p.value.as<double>();
  const std::vector<double> saved(values, values + n);
  const double rms = std::max(root_mean_square(p.value), 1e-2);
  double worst = 0;
  for (uint64_t d = 0; d < kDirections; ++d) {
    const RandomKey key =
        RandomKey(fnv1a(p.name)).fold(static_cast<uint64_t>(RandomPurpose::probe)).fold(d);
    std::vector<double> v(n);
    for (size_t k = 0; k < n; ++k) v[k] = key.normal(k);
    const double length = norm_of(v);
    const double step = 1e-4 * rms * std::sqrt(static_cast<double>(n)) / length;
    const auto loss_at = [&](double h) {
      for (size_t k = 0; k < n; ++k) values[k] = saved[k] + h * v[k];
      return reference.loss();
    };
    // Fourth order, so that the step can be large against rounding.
    const double slope =
        (8 * (loss_at(step) - loss_at(-step)) - (loss_at(2 * step) - loss_at(-2 * step))) /
        (12 * step);
    std::copy(saved.begin(), saved.end(), values);
    const double expected = std::inner_product(v.begin(), v.end(), gradient.begin(), 0.0);
    worst = std::max(worst, std::abs(slope - expected) / std::max(norm_of(gradient), floor));
  }
  return worst;
}

GradientCheck check_precision(Precision precision, EmbeddingModel& model, const Config& config,
                              const LocalBatch& batch, GradientFault fault,
                              const ReferenceGradient& reference, ProcessGrid& grid,
                              Runtime& runtime, int64_t& chunks) {
  GradientBuffers buffers(model);
  TwoPass two_pass(model, config, grid.dp(), runtime);
  if (fault != GradientFault::none)
    two_pass.set_loss_stage([&](const ContrastiveInput& input, TensorView dq, TensorView dk) {
      Tensor queries, documents;
      ContrastiveInput here = input;
      here.queries = on_host(input.queries, queries);
      here.documents = on_host(input.documents, documents);
      Tensor wrong_dq(dq.shape(), dq.dtype()), wrong_dk(dk.shape(), dk.dtype());
      const ContrastiveOutput out =
          faulty_loss(fault, config, model, here, wrong_dq, wrong_dk, grid.dp());
      copy(dq, wrong_dq);
      copy(dk, wrong_dk);
      return out;
    });
  StepTimes times;
  const BatchGradient gradient = two_pass.pass1(batch, 0, times);
  if (!gradient.finite)
    throw NumericError("the loss or its gradient is not finite at the first batch");
  two_pass.pass2(times);
  chunks = grid.dp().sum(gradient.chunks);

  GradientCheck check;
  check.precision = precision;
  check.bound = bound_of(precision, config.loss.precision);
  check.loss = gradient.loss.loss;
  ParameterSet& parameters = model.parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    grid.dp().all_reduce(buffers[i].view(), ReduceOp::sum);
    const double error = relative_error(parameters[i], buffers.in_double(i), reference.tensors[i],
                                        reference, grid.tp());
    check.tensors.push_back({parameters[i].name, error});
    check.max_relative_error = std::max(check.max_relative_error, error);
  }
  check.pass = check.max_relative_error <= check.bound;
  return check;
}

}  // namespace

GradientCertificate verify_gradient(const Config& user_config, const Dataset& data,
                                    const Tokenizer& tokenizer, int64_t samples,
                                    GradientFault fault, ProcessGrid& grid, Runtime& runtime,
                                    Device device) {
  Config config = user_config;
  config.train.batch_size = std::min({config.train.batch_size, samples, data.samples()});
  // The certificate is of the gradient, so neither clipped nor frozen.
  config.optimizer.clip = ClipKind::none;
  const LocalBatch whole = BatchStream(data, tokenizer, config, 0, 1, {}).next();
  const LocalBatch own =
      BatchStream(data, tokenizer, config, grid.dp_rank(), grid.shape().dp, {}).next();

  // The weights of the configured precision, exactly, in all models: whole for the reference, and
  // shared by the tp group for what is certified.
  EmbeddingModel exact(config, Precision::fp64);
  {
    EmbeddingModel rounded(config, config.train.precision);
    ProcessGrid unshared(runtime, {.dp = runtime.size(), .tp = 1});
    begin_model(config, rounded, unshared);
    exact.assign_from(rounded);
  }
  EmbeddingModel model(config, config.train.precision, &grid.tp(), device);
  begin_model(config, model, grid);
  EmbeddingModel in_double(config, Precision::fp64, &grid.tp(), device);
  in_double.assign_from(model);

  // In double nothing is rounded; only the certificate of the configured precisions rounds.
  Config in_full = config;
  in_full.loss.precision = LossPrecision::fp32;
  runtime.set_phase("verify-grad: reference");
  Reference reference(exact, in_full, whole);
  const ReferenceGradient expected = gradient_of(reference, exact);

  GradientCertificate certificate;
  certificate.samples = config.train.batch_size;
  certificate.ranks = grid.world().size();
  certificate.reference_loss = expected.loss.loss;
  // The tensors are dealt to the ranks.
  double worst = 0;
  for (size_t i = 0; i < exact.parameters().size(); ++i) {
    if (static_cast<int>(i) % grid.world().size() != grid.world().rank()) continue;
    const Parameter& p = exact.parameters()[i];
    runtime.set_phase("verify-grad: central differences of " + p.name);
    const double floor = 1e-3 * std::sqrt(static_cast<double>(p.value.elements())) * expected.rms;
    worst = std::max(worst, direction_error(exact, reference, i, expected.tensors[i], floor));
  }
  certificate.max_direction_error = grid.world().max(worst);

  certificate.checks.push_back(check_precision(Precision::fp64, in_double, in_full, own, fault,
                                               expected, grid, runtime, certificate.chunks));
  if (config.train.precision != Precision::fp64) {
    const bool rounded = config.loss.precision == LossPrecision::bf16;
    Reference rounding(exact, config, whole);
    certificate.checks.push_back(check_precision(config.train.precision, model, config, own, fault,
                                                 rounded ? gradient_of(rounding, exact) : expected,
                                                 grid, runtime, certificate.chunks));
  }
  certificate.pass = certificate.max_direction_error <= certificate.direction_bound;
  for (const GradientCheck& c : certificate.checks) certificate.pass &= c.pass;
  return certificate;
}

namespace {

const char* name_of_precision(Precision precision) {
  return precision == Precision::fp64 ? "fp64" : precision == Precision::fp32 ? "fp32" : "bf16";
}

}  // namespace

std::string to_json(const GradientCertificate& c) {
  nlohmann::ordered_json j;
  const GradientCheck& last = c.checks.back();
  j["pass"] = c.pass;
  j["max_relative_error"] = last.max_relative_error;
  j["bound"] = last.bound;
  j["precision"] = name_of_precision(last.precision);
  j["samples"] = c.samples;
  j["ranks"] = c.ranks;
  j["chunks"] = c.chunks;
  j["reference_loss"] = c.reference_loss;
  j["max_direction_error"] = c.max_direction_error;
  j["direction_bound"] = c.direction_bound;
  for (const TensorError& t : last.tensors) j["tensors"][t.name] = t.relative_error;
  for (const GradientCheck& check : c.checks)
    j["checks"].push_back({{"precision", name_of_precision(check.precision)},
                           {"pass", check.pass},
                           {"loss", check.loss},
                           {"max_relative_error", check.max_relative_error},
                           {"bound", check.bound}});
  return j.dump(2);
}

std::string to_table(const GradientCertificate& c) {
  std::string text = fmt::format(
      "gradient of one batch of {} samples on {} ranks in {} chunks, against the reference\n"
      "reference loss {:.12f}; its central differences agree to {:.1e} (bound {:.0e})\n",
      c.samples, c.ranks, c.chunks, c.reference_loss, c.max_direction_error, c.direction_bound);
  text += fmt::format("{:<48}", "relative error of");
  for (const GradientCheck& check : c.checks)
    text += fmt::format(" {:>10}", name_of_precision(check.precision));
  text += '\n';
  for (size_t i = 0; i < c.checks[0].tensors.size(); ++i) {
    text += fmt::format("{:<48}", c.checks[0].tensors[i].name);
    for (const GradientCheck& check : c.checks)
      text += fmt::format(" {:10.1e}", check.tensors[i].relative_error);
    text += '\n';
  }
  text += fmt::format("{:<48}", "bound");
  for (const GradientCheck& check : c.checks) text += fmt::format(" {:10.0e}", check.bound);
  return text + fmt::format("\n{}\n", c.pass ? "PASS" : "FAIL");
}

}  // namespace amur
