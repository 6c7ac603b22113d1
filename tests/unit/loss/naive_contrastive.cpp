#include "tests/unit/loss/naive_contrastive.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace naive {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s;
}

double log_sum_exp(const std::vector<double>& z) {
  const double top = *std::max_element(z.begin(), z.end());
  double s = 0;
  for (double x : z) s += std::exp(x - top);
  return top + std::log(s);
}

// One side of the matrix: a text with what the masks ask of it.
struct Text {
  const std::vector<double>* vector;
  uint64_t id;
  int partner = -1;  // index on the other side (or in the same list, for one tower)
  uint64_t partner_id = 0;
  std::vector<uint64_t> others;
};

bool contains(const std::vector<uint64_t>& ids, uint64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Result contrastive(const Batch& batch, const Options& options) {
  const size_t b = batch.queries.size(), n = batch.documents.size();
  std::vector<Text> queries, documents;
  for (size_t d = 0; d < n; ++d)
    documents.push_back({&batch.documents[d], batch.document_ids[d], -1, 0, {}});
  for (size_t i = 0; i < b; ++i) {
    const auto p = static_cast<size_t>(batch.positive[i]);
    queries.push_back({&batch.queries[i], batch.query_ids[i], batch.positive[i],
                       batch.document_ids[p], batch.others[i]});
    documents[p].partner = static_cast<int>(i);
    documents[p].partner_id = batch.query_ids[i];
  }
  std::vector<Text> rows = queries, columns = documents;
  if (options.all_texts) {
    for (Text& q : queries) q.partner += static_cast<int>(b);
    rows = queries;
    rows.insert(rows.end(), documents.begin(), documents.end());
    columns = rows;
  }
  const size_t m = rows.size(), c = columns.size();
  size_t anchors = 0;
  for (const Text& r : rows) anchors += r.partner >= 0;

  const double s = std::exp(options.log_scale);
  Result out;
  // S without the bias; kNone where masked, excluded, or where the row is no anchor.
  Matrix z(m, std::vector<double>(c, kNone)), g(m, std::vector<double>(c, 0.0));
  for (size_t i = 0; i < m; ++i) {
    if (rows[i].partner < 0) continue;
    for (size_t j = 0; j < c; ++j) {
      if (options.all_texts && i == j) continue;
      const bool right = static_cast<int>(j) == rows[i].partner;
      const bool same_document = columns[j].id == rows[i].partner_id;
      const bool same_query = columns[j].partner >= 0 && columns[j].partner_id == rows[i].id;
      const bool same_text = options.all_texts && columns[j].id == rows[i].id;
      if (options.mask && !right &&
          (same_document || same_query || same_text || contains(rows[i].others, columns[j].id))) {
        ++out.masked;
        continue;
      }
      z[i][j] = s * dot(*rows[i].vector, *columns[j].vector);
    }
  }

  const bool symmetric = options.kind == Kind::symmetric && !options.all_texts;
  const double both = symmetric ? 0.5 : 1;
  const auto weight = [&](size_t i) {
    return options.row_weights.empty() ? 1.0 / static_cast<double>(anchors)
                                       : options.row_weights[i];
  };
  for (size_t i = 0; i < m; ++i) {
    if (rows[i].partner < 0) continue;
    const auto p = static_cast<size_t>(rows[i].partner);
    if (options.kind == Kind::siglip) {
      for (size_t j = 0; j < c; ++j) {
        if (z[i][j] == kNone) continue;
        const double y = j == p ? 1 : -1, x = y * (z[i][j] + options.bias);
        out.loss += weight(i) * (x > 0 ? std::log1p(std::exp(-x)) : std::log1p(std::exp(x)) - x);
        g[i][j] = -y * weight(i) / (1 + std::exp(x));
      }
      continue;
    }
    const double lse = log_sum_exp(z[i]);
    out.loss += both * weight(i) * (lse - z[i][p]);
    for (size_t j = 0; j < c; ++j)
      g[i][j] += both * weight(i) * (std::exp(z[i][j] - lse) - (j == p ? 1 : 0));
    if (symmetric) {
      std::vector<double> column;
      for (size_t k = 0; k < m; ++k) column.push_back(z[k][p]);
      const double column_lse = log_sum_exp(column);
      out.loss += both * weight(i) * (column_lse - z[i][p]);
      for (size_t k = 0; k < m; ++k)
        g[k][p] += both * weight(i) * (std::exp(z[k][p] - column_lse) - (k == i ? 1 : 0));
    }
  }

  const size_t e = b + n == 0 ? 0 : (b > 0 ? batch.queries[0] : batch.documents[0]).size();
  out.dq.assign(b, std::vector<double>(e, 0.0));
  out.dk.assign(n, std::vector<double>(e, 0.0));
  const auto gradient_of = [&](size_t text, bool column) -> std::vector<double>& {
    if (!options.all_texts) return column ? out.dk[text] : out.dq[text];
    return text < b ? out.dq[text] : out.dk[text - b];
  };
  for (size_t i = 0; i < m; ++i) {
    for (size_t j = 0; j < c; ++j) {
      if (g[i][j] == 0 || z[i][j] == kNone) continue;
      out.dt += g[i][j] * z[i][j];
      out.dt_magnitude += std::fabs(g[i][j] * z[i][j]);
      out.db += g[i][j];
      for (size_t d = 0; d < e; ++d) {
        gradient_of(i, false)[d] += s * g[i][j] * (*columns[j].vector)[d];
        gradient_of(j, true)[d] += s * g[i][j] * (*rows[i].vector)[d];
      }
    }
  }
  return out;
}

}  // namespace naive
