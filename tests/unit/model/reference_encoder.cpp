#include "tests/unit/model/reference_encoder.h"

#include <cmath>
#include <stdexcept>

#include "tests/unit/model/fixture.h"

namespace amur::test {

namespace {

using Row = std::vector<double>;
using Matrix = std::vector<Row>;  // one row a token

class Reference {
 public:
  Reference(const ModelConfig& config, ParameterSet& parameters, const std::string& prefix)
      : c_(config), parameters_(parameters), prefix_(prefix) {}

  // An empty row where the model has no such parameter.
  Row values(const std::string& name) const {
    const Parameter* p = parameters_.find(prefix_ + "." + name);
    return p == nullptr ? Row() : to_doubles(p->value.view());
  }

  // W [out, in] x + b, from rows first.. of W.
  static Row affine(const Row& weight, size_t first, size_t outputs, const Row& x,
                    const Row& bias = {}) {
    Row y(outputs);
    for (size_t o = 0; o < outputs; ++o) {
      y[o] = bias.empty() ? 0 : bias[o];
      for (size_t i = 0; i < x.size(); ++i) y[o] += weight[(first + o) * x.size() + i] * x[i];
    }
    return y;
  }

  Row layer_norm(const std::string& name, const Row& x) const {
    const Row gain = values(name + ".gain"), bias = values(name + ".bias");
    if (gain.empty()) throw std::runtime_error("no norm " + name);
    const auto n = static_cast<double>(x.size());
    double mean = 0, variance = 0;
    for (double v : x) mean += v / n;
    for (double v : x) variance += (v - mean) * (v - mean) / n;
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i)
      y[i] = (x[i] - mean) / std::sqrt(variance + c_.norm_eps) * gain[i] +
             (bias.empty() ? 0 : bias[i]);
    return y;
  }

  static double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

  void rotate(Row& head, size_t position, double base) const {
    const size_t half = head.size() / 2;
    for (size_t j = 0; j < half; ++j) {
      const double angle =
          static_cast<double>(position) *
          std::pow(base, -2 * static_cast<double>(j) / static_cast<double>(head.size()));
      const double a = head[j], b = head[j + half];
      head[j] = a * std::cos(angle) - b * std::sin(angle);
      head[j + half] = b * std::cos(angle) + a * std::sin(angle);
    }
  }

  // base 0: no rotation; a token sees those up to `window` places away.
  Matrix attention(const std::string& name, const Matrix& x, double base,
                   size_t window = 1u << 30) const {
    const auto heads = static_cast<size_t>(c_.heads);
    const auto size = static_cast<size_t>(c_.resolved_head_size());
    const Row weight = values(name + ".qkv.weight"), bias = values(name + ".qkv.bias");
    const Row key_bias = values(name + ".key.bias");
    const Row out = values(name + ".output.weight"), out_bias = values(name + ".output.bias");
    Matrix joined(x.size(), Row(heads * size));
    for (size_t h = 0; h < heads; ++h) {
      const auto project = [&](size_t part, const Row& b, size_t b_part, bool rotated) {
        Matrix y;
        for (size_t t = 0; t < x.size(); ++t) {
          y.push_back(affine(weight, (part * heads + h) * size, size, x[t]));
          for (size_t j = 0; j < size && !b.empty(); ++j)
            y[t][j] += b[(b_part * heads + h) * size + j];
          if (rotated && base != 0) rotate(y[t], t, base);
        }
        return y;
      };
      const Matrix q = project(0, bias, 0, true), k = project(1, key_bias, 0, true);
      const Matrix v = project(2, bias, 1, false);
      for (size_t t = 0; t < x.size(); ++t) {
        Row p(x.size());
        double total = 0;
        for (size_t u = 0; u < x.size(); ++u) {
          if (u > t + window || t > u + window) continue;
          for (size_t j = 0; j < size; ++j) p[u] += q[t][j] * k[u][j];
          p[u] = std::exp(p[u] / std::sqrt(static_cast<double>(size)));
          total += p[u];
        }
        for (size_t u = 0; u < x.size(); ++u)
          for (size_t j = 0; j < size; ++j) joined[t][h * size + j] += p[u] / total * v[u][j];
      }
    }
    Matrix y;
    for (const Row& row : joined)
      y.push_back(affine(out, 0, static_cast<size_t>(c_.hidden), row, out_bias));
    return y;
  }

  Row pool(const Matrix& x) const {
    if (c_.pooling == PoolingKind::cls) return x.front();
    Row y(x.front().size());
    for (const Row& row : x)
      for (size_t i = 0; i < y.size(); ++i) y[i] += row[i] / static_cast<double>(x.size());
    return y;
  }

  Row finish(const Matrix& x) const {
    const Row pooled = pool(x);
    if (c_.projection == 0) return pooled;
    return affine(values("projection.weight"), 0, static_cast<size_t>(c_.projection), pooled);
  }

  Row token(int32_t id) const { return row_of("embeddings.tokens", static_cast<size_t>(id)); }
  Row row_of(const std::string& table, size_t row) const {
    const Row all = values(table);
    const auto d = static_cast<std::ptrdiff_t>(c_.hidden);
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(row) * d;
    return {first, first + d};
  }

  static Row sum(const Row& a, const Row& b) {
    Row y(a);
    for (size_t i = 0; i < y.size(); ++i) y[i] += b[i];
    return y;
  }

 private:
  const ModelConfig& c_;
  ParameterSet& parameters_;
  std::string prefix_;
};

}  // namespace

std::vector<double> bert_embedding(const ModelConfig& config, ParameterSet& parameters,
                                   const std::string& prefix, const std::vector<int32_t>& tokens) {
  const Reference r(config, parameters, prefix);
  const auto ffn = static_cast<size_t>(config.resolved_ffn());
  const auto hidden = static_cast<size_t>(config.hidden);
  Matrix x;
  for (size_t t = 0; t < tokens.size(); ++t) {
    Row sum = Reference::sum(r.token(tokens[t]), r.row_of("embeddings.positions", t));
    if (config.token_type) sum = Reference::sum(sum, r.values("embeddings.token_type"));
    x.push_back(r.layer_norm("embeddings.norm", sum));
  }
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string layer = "layers." + std::to_string(i);
    const Matrix a = r.attention(layer + ".attention", x, 0);
    for (size_t t = 0; t < x.size(); ++t) {
      x[t] = r.layer_norm(layer + ".attention.norm", Reference::sum(x[t], a[t]));
      Row u = Reference::affine(r.values(layer + ".feed_forward.up.weight"), 0, ffn, x[t],
                                r.values(layer + ".feed_forward.up.bias"));
      for (double& v : u) v = Reference::gelu(v);
      const Row f = Reference::affine(r.values(layer + ".feed_forward.down.weight"), 0, hidden, u,
                                      r.values(layer + ".feed_forward.down.bias"));
      x[t] = r.layer_norm(layer + ".feed_forward.norm", Reference::sum(x[t], f));
    }
  }
  return r.finish(x);
}

std::vector<double> modernbert_embedding(const ModelConfig& config, ParameterSet& parameters,
                                         const std::string& prefix,
                                         const std::vector<int32_t>& tokens) {
  const Reference r(config, parameters, prefix);
  const auto ffn = static_cast<size_t>(config.resolved_ffn());
  const auto hidden = static_cast<size_t>(config.hidden);
  Matrix x;
  for (int32_t id : tokens) x.push_back(r.layer_norm("embeddings.norm", r.token(id)));
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string layer = "layers." + std::to_string(i);
    Matrix n = x;
    if (i > 0)
      for (Row& row : n) row = r.layer_norm(layer + ".attention.norm", row);
    // As modeling_modernbert.py has it: local_attention is the width of the whole window.
    const bool local = config.local_attention > 0 && i % config.global_every != 0;
    const Matrix a = local ? r.attention(layer + ".attention", n, config.local_rotary_base,
                                         static_cast<size_t>(config.local_attention / 2))
                           : r.attention(layer + ".attention", n, config.rotary_base);
    for (size_t t = 0; t < x.size(); ++t) {
      x[t] = Reference::sum(x[t], a[t]);
      const Row m = r.layer_norm(layer + ".feed_forward.norm", x[t]);
      const Row up = r.values(layer + ".feed_forward.up.weight");
      Row u = Reference::affine(up, 0, ffn, m);
      const Row gate = Reference::affine(up, ffn, ffn, m);
      for (size_t j = 0; j < ffn; ++j) u[j] = Reference::gelu(u[j]) * gate[j];
      x[t] = Reference::sum(
          x[t], Reference::affine(r.values(layer + ".feed_forward.down.weight"), 0, hidden, u));
    }
  }
  for (Row& row : x) row = r.layer_norm("norm", row);
  return r.finish(x);
}

}  // namespace amur::test
