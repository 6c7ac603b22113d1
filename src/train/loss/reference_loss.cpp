#include "src/train/loss/reference_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/dtype.h"
#include "src/core/error.h"

namespace amur {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Four sums side by side: one would wait for itself at every addition.
double dot(const double* a, const double* b, int64_t n) {
  double sums[4] = {};
  int64_t k = 0;
  for (; k + 4 <= n; k += 4)
    for (int64_t lane = 0; lane < 4; ++lane) sums[lane] += a[k + lane] * b[k + lane];
  for (; k < n; ++k) sums[0] += a[k] * b[k];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The score matrix of the loss in its general form: each row has one right column. Texts are
// numbered: all queries, then all documents.
struct Problem {
  std::vector<size_t> rows, columns;  // texts
  std::vector<int64_t> right;         // [rows] column
  std::vector<double> weight;         // [rows]
  std::vector<char> masked;           // [rows, columns]
  int64_t masked_count = 0;           // a text as its own candidate not counted
  std::vector<double> scores;         // [rows, columns], -inf where masked
  bool masked_at(size_t i, size_t j) const { return masked[i * columns.size() + j] != 0; }
};

// Softmax over one line of scores, 0 where masked; returns the log-sum-exp.
double softmax(std::vector<double>& line) {
  const double top = *std::max_element(line.begin(), line.end());
  double sum = 0;
  for (double s : line) sum += std::exp(s - top);
  const double lse = top + std::log(sum);
  for (double& s : line) s = std::exp(s - lse);
  return lse;
}

// Both add dL/dS to `g` [rows, columns], unless it is empty, and return the loss.
double infonce(const Problem& p, bool symmetric, std::span<double> g) {
  const size_t m = p.columns.size();
  const double share = symmetric ? 0.5 : 1.0;
  double loss = 0;
  std::vector<double> line;
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const auto y = static_cast<size_t>(p.right[i]);
    line.assign(p.scores.begin() + static_cast<long>(i * m),
                p.scores.begin() + static_cast<long>((i + 1) * m));
    loss += share * p.weight[i] * (softmax(line) - p.scores[i * m + y]);
    if (g.empty()) continue;
    for (size_t j = 0; j < m; ++j) g[i * m + j] += share * p.weight[i] * (line[j] - (j == y));
  }
  if (!symmetric) return loss;
  for (size_t i = 0; i < p.rows.size(); ++i) {  // the column of row i's positive
    const auto y = static_cast<size_t>(p.right[i]);
    line.clear();
    for (size_t k = 0; k < p.rows.size(); ++k) line.push_back(p.scores[k * m + y]);
    loss += share * p.weight[i] * (softmax(line) - p.scores[i * m + y]);
    if (g.empty()) continue;
    for (size_t k = 0; k < p.rows.size(); ++k)
      g[k * m + y] += share * p.weight[i] * (line[k] - (k == i));
  }
  return loss;
}

double siglip(const Problem& p, std::span<double> g) {
  const size_t m = p.columns.size();
  double loss = 0;
  for (size_t i = 0; i < p.rows.size(); ++i)
    for (size_t j = 0; j < m; ++j) {
      if (p.masked_at(i, j)) continue;
      const double y = static_cast<int64_t>(j) == p.right[i] ? 1 : -1;
      const double s = y * p.scores[i * m + j];
      loss += p.weight[i] * (std::max(-s, 0.0) + std::log1p(std::exp(-std::abs(s))));
      if (!g.empty()) g[i * m + j] -= p.weight[i] * y / (1 + std::exp(s));
    }
  return loss;
}

// What products take of the embeddings.
ReferenceRows operands_of(const LossConfig& config, const ReferenceRows& rows) {
  ReferenceRows operands = rows;
  if (config.precision == LossPrecision::bf16)
    for (double& x : operands.values) x = static_cast<double>(bf16(static_cast<float>(x)));
  return operands;
}
ReferenceBatch with_operands(const LossConfig& config, const ReferenceBatch& batch) {
  ReferenceBatch result = batch;
  result.queries = operands_of(config, batch.queries);
  result.documents = operands_of(config, batch.documents);
  return result;
}

const double* vector_of(const ReferenceBatch& batch, size_t text) {
  const auto queries = static_cast<size_t>(batch.queries.rows);
  const ReferenceRows& side = text < queries ? batch.queries : batch.documents;
  return side.values.data() +
         (text < queries ? text : text - queries) * static_cast<size_t>(side.width);
}

double bias_of(const LossConfig& config, double bias) {
  return config.kind == LossKind::siglip ? bias : 0;
}

double loss_of(const LossConfig& config, const Problem& p, std::span<double> g) {
  if (config.kind == LossKind::siglip) return siglip(p, g);
  return infonce(p, config.symmetric && config.candidates != LossCandidates::all, g);
}

Problem make_problem(const LossConfig& config, double log_scale, double bias,
                     const ReferenceBatch& batch, std::span<const double> row_weights) {
  const auto n = static_cast<size_t>(batch.queries.rows);
  const auto documents = static_cast<size_t>(batch.documents.rows);
  Problem p;
  const bool all = config.candidates == LossCandidates::all;
  const auto weight_of = [&](size_t i) {
    return row_weights.empty() ? 1.0 / static_cast<double>(n) : row_weights[i];
  };
  // Columns: all documents, after all queries where those are candidates too.
  const size_t first_document = all ? n : 0;
  for (size_t text = all ? 0 : n; text < n + documents; ++text) p.columns.push_back(text);
  // Rows: queries, and their positives where those ask too.
  for (size_t i = 0; i < n; ++i) {
    p.rows.push_back(i);
    p.right.push_back(static_cast<int64_t>(first_document) + batch.positive[i]);
    p.weight.push_back(all ? 0.5 * weight_of(i) : weight_of(i));
  }
  if (all)
    for (size_t i = 0; i < n; ++i) {
      p.rows.push_back(n + static_cast<size_t>(batch.positive[i]));
      p.right.push_back(static_cast<int64_t>(i));
      p.weight.push_back(0.5 * weight_of(i));
    }

  const size_t m = p.columns.size();
  std::vector<int64_t> owner(documents, -1);  // query whose positive a document is
  for (size_t i = 0; i < n; ++i)
    owner[static_cast<size_t>(batch.positive[i])] = static_cast<int64_t>(i);
  p.masked.assign(p.rows.size() * m, 0);
  // Texts, and the text each is paired with.
  struct Text {
    uint64_t id = 0, partner = 0;
    bool paired = false;
  };
  const auto query_text = [&](size_t q) {
    return Text{batch.query_ids[q], batch.document_ids[static_cast<size_t>(batch.positive[q])],
                true};
  };
  const auto document_text = [&](size_t d) {
    return Text{batch.document_ids[d],
                owner[d] >= 0 ? batch.query_ids[static_cast<size_t>(owner[d])] : 0, owner[d] >= 0};
  };
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const Text row =
        i < n ? query_text(i) : document_text(static_cast<size_t>(batch.positive[i - n]));
    for (size_t j = 0; j < m; ++j) {
      if (static_cast<int64_t>(j) == p.right[i]) continue;
      const Text column = j < first_document ? query_text(j) : document_text(j - first_document);
      const bool itself = all && p.rows[i] == p.columns[j];
      bool mask = itself;
      if (config.mask_duplicates) {
        mask |= column.id == row.partner || (column.paired && column.partner == row.id) ||
                (all && column.id == row.id);
        if (i < n)
          for (uint64_t other : batch.other_positives[i]) mask |= column.id == other;
      }
      p.masked[i * m + j] = mask;
      p.masked_count += mask && !itself;
    }
  }

  const double s = std::exp(log_scale), b = bias_of(config, bias);
  p.scores.resize(p.rows.size() * m);
  for (size_t i = 0; i < p.rows.size(); ++i)
    for (size_t j = 0; j < m; ++j)
      p.scores[i * m + j] = p.masked_at(i, j)
                                ? kMinusInfinity
                                : s * dot(vector_of(batch, p.rows[i]),
                                          vector_of(batch, p.columns[j]), batch.queries.width) +
                                      b;
  return p;
}

}  // namespace

ReferenceLoss reference_loss(const LossConfig& config, double log_scale, double bias,
                             const ReferenceBatch& given, std::span<const double> row_weights) {
  const ReferenceBatch batch = with_operands(config, given);
  const Problem p = make_problem(config, log_scale, bias, batch, row_weights);
  const size_t m = p.columns.size();
  const auto width = static_cast<size_t>(batch.queries.width);
  std::vector<double> g(p.scores.size(), 0);
  ReferenceLoss result;
  result.loss = loss_of(config, p, g);
  result.masked = p.masked_count;
  result.dq.assign(batch.queries.values.size(), 0);
  result.dk.assign(batch.documents.values.size(), 0);
  const auto gradient_of = [&](size_t text) {
    const auto queries = static_cast<size_t>(batch.queries.rows);
    return text < queries ? &result.dq[text * width] : &result.dk[(text - queries) * width];
  };

  const double s = std::exp(log_scale), b = bias_of(config, bias);
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const double* row = vector_of(batch, p.rows[i]);
    double* row_gradient = gradient_of(p.rows[i]);
    for (size_t j = 0; j < m; ++j) {
      const double gij = g[i * m + j];
      if (p.masked_at(i, j) || gij == 0) continue;
      const double term = gij * (p.scores[i * m + j] - b);
      result.scale_gradient += term;
      result.scale_magnitude += std::abs(term);
      result.bias_gradient += gij;
      result.bias_magnitude += std::abs(gij);
      const double* column = vector_of(batch, p.columns[j]);
      double* column_gradient = gradient_of(p.columns[j]);
      for (size_t k = 0; k < width; ++k) {
        row_gradient[k] += s * gij * column[k];
        column_gradient[k] += s * gij * row[k];
      }
    }
  }
  return result;
}

double reference_loss_value(const LossConfig& config, double log_scale, double bias,
                            const ReferenceBatch& batch) {
  return loss_of(config, make_problem(config, log_scale, bias, with_operands(config, batch), {}),
                 {});
}

}  // namespace amur
