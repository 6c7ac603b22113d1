#include "src/train/loss/reference_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/error.h"

namespace amur {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// The score matrix of the loss in its general form: each row has one right column.
struct Problem {
  std::vector<const double*> rows, columns;  // vectors
  std::vector<double*> row_gradients, column_gradients;
  std::vector<int64_t> right;  // [rows] column
  std::vector<double> weight;  // [rows]
  std::vector<char> masked;    // [rows, columns]
  int64_t width = 0;
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

void add_infonce(const Problem& p, const std::vector<double>& scores, bool symmetric,
                 std::vector<double>& g, double& loss) {
  const size_t m = p.columns.size();
  const double share = symmetric ? 0.5 : 1.0;
  std::vector<double> line;
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const auto y = static_cast<size_t>(p.right[i]);
    line.assign(scores.begin() + static_cast<long>(i * m),
                scores.begin() + static_cast<long>((i + 1) * m));
    loss += share * p.weight[i] * (softmax(line) - scores[i * m + y]);
    for (size_t j = 0; j < m; ++j) g[i * m + j] += share * p.weight[i] * (line[j] - (j == y));
  }
  if (!symmetric) return;
  for (size_t i = 0; i < p.rows.size(); ++i) {  // the column of row i's positive
    const auto y = static_cast<size_t>(p.right[i]);
    line.clear();
    for (size_t k = 0; k < p.rows.size(); ++k) line.push_back(scores[k * m + y]);
    loss += share * p.weight[i] * (softmax(line) - scores[i * m + y]);
    for (size_t k = 0; k < p.rows.size(); ++k)
      g[k * m + y] += share * p.weight[i] * (line[k] - (k == i));
  }
}

void add_siglip(const Problem& p, const std::vector<double>& scores, std::vector<double>& g,
                double& loss) {
  const size_t m = p.columns.size();
  for (size_t i = 0; i < p.rows.size(); ++i)
    for (size_t j = 0; j < m; ++j) {
      if (p.masked_at(i, j)) continue;
      const double y = static_cast<int64_t>(j) == p.right[i] ? 1 : -1;
      const double s = y * scores[i * m + j];
      loss += p.weight[i] * (std::max(-s, 0.0) + std::log1p(std::exp(-std::abs(s))));
      g[i * m + j] -= p.weight[i] * y / (1 + std::exp(s));
    }
}

}  // namespace

ReferenceLoss reference_loss(const LossConfig& config, double log_scale, double bias,
                             const ReferenceBatch& batch, std::span<const double> row_weights) {
  const auto n = static_cast<size_t>(batch.queries.rows);
  const auto documents = static_cast<size_t>(batch.documents.rows);
  const int64_t width = batch.queries.width;
  ReferenceLoss result;
  result.dq.assign(batch.queries.values.size(), 0);
  result.dk.assign(batch.documents.values.size(), 0);

  Problem p;
  p.width = width;
  const bool all = config.candidates == LossCandidates::all;
  const auto weight_of = [&](size_t i) {
    return row_weights.empty() ? 1.0 / static_cast<double>(n) : row_weights[i];
  };
  const auto query = [&](size_t i) {
    return batch.queries.values.data() + i * static_cast<size_t>(width);
  };
  const auto document = [&](size_t j) {
    return batch.documents.values.data() + j * static_cast<size_t>(width);
  };
  const auto query_gradient = [&](size_t i) {
    return result.dq.data() + i * static_cast<size_t>(width);
  };
  const auto document_gradient = [&](size_t j) {
    return result.dk.data() + j * static_cast<size_t>(width);
  };

  // Columns: all documents, after all queries where those are candidates too.
  const size_t first_document = all ? n : 0;
  if (all)
    for (size_t i = 0; i < n; ++i) {
      p.columns.push_back(query(i));
      p.column_gradients.push_back(query_gradient(i));
    }
  for (size_t j = 0; j < documents; ++j) {
    p.columns.push_back(document(j));
    p.column_gradients.push_back(document_gradient(j));
  }
  // Rows: queries, and their positives where those ask too.
  for (size_t i = 0; i < n; ++i) {
    p.rows.push_back(query(i));
    p.row_gradients.push_back(query_gradient(i));
    p.right.push_back(static_cast<int64_t>(first_document) + batch.positive[i]);
    p.weight.push_back(all ? 0.5 * weight_of(i) : weight_of(i));
  }
  if (all)
    for (size_t i = 0; i < n; ++i) {
      const auto d = static_cast<size_t>(batch.positive[i]);
      p.rows.push_back(document(d));
      p.row_gradients.push_back(document_gradient(d));
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
      bool mask = all && p.rows[i] == p.columns[j];  // itself
      if (config.mask_duplicates) {
        mask |= column.id == row.partner || (column.paired && column.partner == row.id) ||
                (all && column.id == row.id);
        if (i < n)
          for (uint64_t other : batch.other_positives[i]) mask |= column.id == other;
      }
      p.masked[i * m + j] = mask;
    }
  }

  const double s = std::exp(log_scale);
  const double b = config.kind == LossKind::siglip ? bias : 0;
  std::vector<double> scores(p.rows.size() * m);
  for (size_t i = 0; i < p.rows.size(); ++i)
    for (size_t j = 0; j < m; ++j)
      scores[i * m + j] =
          p.masked_at(i, j) ? kMinusInfinity : s * dot(p.rows[i], p.columns[j], width) + b;

  std::vector<double> g(scores.size(), 0);
  if (config.kind == LossKind::siglip)
    add_siglip(p, scores, g, result.loss);
  else
    add_infonce(p, scores, config.symmetric && !all, g, result.loss);

  for (size_t i = 0; i < p.rows.size(); ++i)
    for (size_t j = 0; j < m; ++j) {
      const double gij = g[i * m + j];
      if (p.masked_at(i, j) || gij == 0) continue;
      const double term = gij * (scores[i * m + j] - b);
      result.scale_gradient += term;
      result.scale_magnitude += std::abs(term);
      result.bias_gradient += gij;
      result.bias_magnitude += std::abs(gij);
      for (int64_t k = 0; k < width; ++k) {
        p.row_gradients[i][k] += s * gij * p.columns[j][k];
        p.column_gradients[j][k] += s * gij * p.rows[i][k];
      }
    }
  return result;
}

}  // namespace amur
