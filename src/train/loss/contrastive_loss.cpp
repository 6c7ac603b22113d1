#include "src/train/loss/contrastive_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/contrastive.h"
#include "kernels/contrastive_math.h"
#include "kernels/gemm.h"
#include "src/train/loss/logit_mask.h"

namespace amur {
namespace {

// On a GPU tiles are this many times as long and as wide as on the CPU: it takes that much work to
// keep one busy, and a launch costs the same whatever it does.
constexpr int64_t kGpuTile = 8;

// Hands out the stage's memory and counts it.
class Workspace {
 public:
  Tensor tensor(Shape shape, DType dtype, Device device = Device::cpu()) {
    Tensor t(shape, dtype, device);
    count(t.bytes());
    return t;
  }
  Tensor zeros(Shape shape, DType dtype, Device device = Device::cpu()) {
    Tensor t = tensor(shape, dtype, device);
    fill_zero(t);
    return t;
  }
  template <class T>
  Tensor filled(int64_t n, float value) {
    Tensor t = tensor({n}, dtype_of<T>);
    std::fill_n(t.as<T>(), n, static_cast<T>(value));
    return t;
  }
  void count(size_t bytes) { bytes_ += bytes; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

void check_input(const ContrastiveInput& in, TensorView dq, TensorView dk) {
  const int64_t b = in.queries.rows(), n = in.documents.rows(), e = in.queries.columns();
  const DType dtype = in.queries.dtype();
  AMUR_CHECK(in.documents.columns() == e && e > 0, "queries {}, documents {}",
             in.queries.shape().text(), in.documents.shape().text());
  AMUR_CHECK(in.documents.dtype() == dtype && dq.dtype() == dtype && dk.dtype() == dtype,
             "queries are {}, documents {}, gradients {} and {}", name_of(dtype),
             name_of(in.documents.dtype()), name_of(dq.dtype()), name_of(dk.dtype()));
  AMUR_CHECK(dq.rows() == b && dq.columns() == e && dk.rows() == n && dk.columns() == e,
             "gradients {}, {}", dq.shape().text(), dk.shape().text());
  for (const Device device : {in.documents.device(), dq.device(), dk.device()})
    AMUR_CHECK(device == in.queries.device(), "queries on {}, others on {}",
               in.queries.device().text(), device.text());
  AMUR_CHECK(std::ssize(in.query_ids) == b && std::ssize(in.document_ids) == n &&
                 std::ssize(in.positive) == b,
             "{} query ids, {} document ids, {} positives", in.query_ids.size(),
             in.document_ids.size(), in.positive.size());
  AMUR_CHECK(in.other_first.empty() || std::ssize(in.other_first) == b + 1, "other_first has {}",
             in.other_first.size());
  std::vector<bool> taken(static_cast<size_t>(n));
  for (int32_t p : in.positive) {
    AMUR_CHECK(p >= 0 && p < n && !taken[static_cast<size_t>(p)],
               "document {} of {} is the positive of two queries, or of none", p, n);
    taken[static_cast<size_t>(p)] = true;
  }
}

// Texts of this rank that stand as rows and as columns; positions are relative to the rank's first
// column. With `all`, queries come before documents and every text is a row.
struct LocalTexts {
  std::vector<LogitRow> rows;
  LogitColumns columns;
};

LocalTexts local_texts(const ContrastiveInput& in, bool all) {
  const size_t b = in.query_ids.size(), n = in.document_ids.size(), q = all ? b : 0;
  LocalTexts t;
  t.columns.text_id.resize(q + n);
  t.columns.partner_id.resize(q + n);
  t.columns.is_positive.resize(q + n);
  t.rows.resize(all ? q + n : b);
  for (size_t d = 0; d < n; ++d) {
    t.columns.text_id[q + d] = in.document_ids[d];
    if (all) {
      t.rows[q + d].self = static_cast<int64_t>(q + d);
      t.rows[q + d].text_id = in.document_ids[d];
    }
  }
  for (size_t i = 0; i < b; ++i) {
    const size_t d = static_cast<size_t>(in.positive[i]);
    LogitRow& row = t.rows[i];
    row.positive = static_cast<int64_t>(q + d);
    row.text_id = in.query_ids[i];
    if (!in.other_first.empty()) {
      const auto first = static_cast<size_t>(in.other_first[i]);
      row.other_positives =
          in.other_positives.subspan(first, static_cast<size_t>(in.other_first[i + 1]) - first);
    }
    t.columns.partner_id[q + d] = in.query_ids[i];
    t.columns.is_positive[q + d] = 1;
    if (all) {
      row.self = static_cast<int64_t>(i);
      t.rows[q + d].positive = static_cast<int64_t>(i);
      t.columns.text_id[i] = in.query_ids[i];
      t.columns.partner_id[i] = in.document_ids[d];
      t.columns.is_positive[i] = 1;
    }
  }
  return t;
}

LogitColumns gather_columns(const LogitColumns& local, std::span<const int64_t> counts,
                            Workspace& work, Communicator& dp) {
  const auto own = std::ssize(local.text_id);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  Tensor shard = work.tensor({own, 3}, DType::i64), full = work.tensor({total, 3}, DType::i64);
  for (int64_t j = 0; j < own; ++j) {
    const auto at = static_cast<size_t>(j);
    int64_t* entry = shard.as<int64_t>() + 3 * j;
    entry[0] = static_cast<int64_t>(local.text_id[at]);
    entry[1] = static_cast<int64_t>(local.partner_id[at]);
    entry[2] = local.is_positive[at];
  }
  dp.all_gather(shard, full, counts);
  dp.synchronize();
  LogitColumns columns;
  columns.text_id.reserve(static_cast<size_t>(total));
  columns.partner_id.reserve(static_cast<size_t>(total));
  columns.is_positive.reserve(static_cast<size_t>(total));
  for (int64_t j = 0; j < total; ++j) {
    const int64_t* entry = full.as<int64_t>() + 3 * j;
    columns.text_id.push_back(static_cast<uint64_t>(entry[0]));
    columns.partner_id.push_back(static_cast<uint64_t>(entry[1]));
    columns.is_positive.push_back(static_cast<uint8_t>(entry[2]));
  }
  work.count(columns.bytes());
  return columns;
}

void bring(Device device, std::initializer_list<Tensor*> tensors) {
  for (Tensor* t : tensors) *t = on_device(std::move(*t), device);
}

// The row block of this rank against all columns. Negatives are summed in the tiles; each row's one
// positive entry is kept apart and computed in double, so that a nearly solved batch, where 1 - P
// would cancel, loses nothing.
//
// Tiles are computed where the embeddings are. What there is one of a row or a column goes to host
// memory between the sweeps: it is little, and its sums over the ranks are too.
template <class T>
class RowBlock {
 public:
  RowBlock(const LossConfig& config, double scale, double bias, ConstTensorView rows,
           ConstTensorView columns, std::span<const LogitRow> row_info,
           const LogitColumns& column_info, const LogitExclusions& exclusions, double weight,
           Workspace& work, Stream stream)
      : scale_(scale),
        bias_(bias),
        weight_(weight),
        rows_(rows),
        columns_(columns),
        row_info_(row_info),
        column_info_(column_info),
        exclusions_(exclusions),
        work_(work),
        stream_(stream),
        device_(rows.device()) {
    const int64_t times = device_ == Device::cpu() ? 1 : kGpuTile, r = rows.rows();
    tile_rows_ = std::clamp<int64_t>(r, 1, times * config.tile_rows);
    tile_columns_ = std::clamp<int64_t>(columns.rows(), 1, times * config.tile_columns);
    tile_ = work.tensor({tile_rows_ * tile_columns_}, dtype_of<T>, device_);
    positive_logit_ = work.zeros({r}, DType::f64, device_);
    positive_gradient_ = work.zeros({r}, DType::f64);
    sums_ = work.zeros({4}, DType::f64, device_);
  }

  double loss = 0, scale_gradient = 0, bias_gradient = 0, masked = 0;

  // Softmax over rows and, with `symmetric`, over the columns that are positives.
  void softmax(bool symmetric, TensorView drows, TensorView dcolumns, Communicator& dp) {
    const int64_t m = rows_.rows(), n = columns_.rows();
    Tensor row_maximum = work_.filled<T>(m, kMaskedLogit);
    Tensor row_sum = work_.zeros({m}, DType::f64, device_);
    Tensor column_maximum, column_sum;
    if (symmetric) {
      column_maximum = work_.filled<T>(n, kMaskedLogit);
      column_sum = work_.zeros({n}, DType::f64, device_);
    }
    bring(device_, {&row_maximum, &column_maximum});
    for_each_tile([&](TensorView tile, TilePlace at) {
      exclude(tile, at, true);
      contrastive_statistics(tile, part(row_maximum, at.row, tile.rows()),
                             part(row_sum, at.row, tile.rows()),
                             part(column_maximum, at.column, tile.columns()),
                             part(column_sum, at.column, tile.columns()), stream_);
    });
    bring(Device::cpu(), {&row_maximum, &row_sum, &column_maximum, &column_sum, &positive_logit_});
    Tensor row_factor = finish_rows(row_maximum, row_sum);
    Tensor column_factor;
    if (symmetric) column_factor = finish_columns(column_maximum, column_sum, dp);
    bring(device_,
          {&row_maximum, &row_factor, &column_maximum, &column_factor, &positive_gradient_});
    for_each_tile([&](TensorView tile, TilePlace at) {
      exclude(tile, at, false);
      contrastive_softmax_gradient(
          tile, part(row_maximum, at.row, tile.rows()), part(row_factor, at.row, tile.rows()),
          part(column_maximum, at.column, tile.columns()),
          part(column_factor, at.column, tile.columns()), positives(tile, at, positive_gradient_),
          sums_.view().slice(2, 1), stream_);
      add_gradients(tile, at, drows, dcolumns);
    });
    bring(Device::cpu(), {&positive_gradient_});
    take_sums();
    for (int64_t i = 0; i < m; ++i)
      scale_gradient += positive_gradient_.as<double>()[i] * positive_logit_.as<double>()[i];
  }

  // Every pair is a decision of its own: one sweep, no statistics.
  void pairwise_sigmoid(TensorView drows, TensorView dcolumns) {
    for_each_tile([&](TensorView tile, TilePlace at) {
      exclude(tile, at, true);
      contrastive_sigmoid(tile, bias_, weight_, positives(tile, at, positive_logit_),
                          sums_.view().slice(0, 3), stream_);
      add_gradients(tile, at, drows, dcolumns);
    });
    take_sums();
  }

 private:
  static TensorView part(Tensor& whole, int64_t first, int64_t count) {
    return whole.defined() ? whole.view().slice(first, count) : TensorView();
  }

  // Calls f(tile of logits, its place); columns run inside, always in the same order and shapes, so
  // that both sweeps see the same bits.
  template <class F>
  void for_each_tile(const F& f) {
    for (int64_t i = 0; i < rows_.rows(); i += tile_rows_) {
      const int64_t m = std::min(tile_rows_, rows_.rows() - i);
      for (int64_t j = 0; j < columns_.rows(); j += tile_columns_) {
        const int64_t n = std::min(tile_columns_, columns_.rows() - j);
        const TensorView tile(tile_.view().raw(), {m, n}, dtype_of<T>, device_);
        gemm(Transpose::no, Transpose::yes, scale_, rows_.slice(i, m), columns_.slice(j, n), 0,
             tile, stream_);
        f(tile, {i, j});
      }
    }
  }
  // In the first sweep the positives' logits are taken, and masked entries counted.
  void exclude(TensorView tile, TilePlace at, bool first_sweep) {
    contrastive_exclude(tile, at, exclusions_,
                        first_sweep ? part(positive_logit_, at.row, tile.rows()) : TensorView(),
                        first_sweep ? sums_.view().slice(3, 1) : TensorView(), stream_);
  }
  TilePositives positives(TensorView tile, TilePlace at, const Tensor& value) const {
    return {exclusions_.positive.slice(at.row, tile.rows()), at.column,
            value.view().slice(at.row, tile.rows())};
  }
  // What the passes summed up.
  void take_sums() {
    bring(Device::cpu(), {&sums_});
    const double* s = sums_.as<double>();
    loss += s[0];
    bias_gradient = s[1];
    scale_gradient = s[2];
    masked = s[3];
  }

  // Loss and positive gradient of the rows. Leaves the maxima over negatives and positive, and
  // returns weight / (sum of all candidates).
  Tensor finish_rows(Tensor& maximum, const Tensor& sum) {
    Tensor factor = work_.filled<T>(rows_.rows(), 0);
    for (size_t i = 0; i < row_info_.size(); ++i) {
      if (row_info_[i].positive < 0) continue;
      const double z = positive_logit_.as<double>()[i];
      const double top = static_cast<double>(maximum.as<T>()[i]);
      const double negatives = sum.as<double>()[i];
      const double largest = std::max(top, z);
      const double rest = negatives * std::exp(top - largest);
      const double total = rest + std::exp(z - largest);
      loss += weight_ * softplus(top - z + std::log(negatives));
      positive_gradient_.as<double>()[i] = -weight_ * (rest / total);
      maximum.as<T>()[i] = static_cast<T>(largest);
      factor.as<T>()[i] = static_cast<T>(weight_ / total);
    }
    return factor;
  }

  // The same for columns, whose rows are spread over all ranks; the positive of a column stands on
  // the rank of its query.
  Tensor finish_columns(Tensor& maximum, const Tensor& sum, Communicator& dp) {
    const int64_t n = columns_.rows();
    const double* positive_logit = positive_logit_.as<double>();
    Tensor local = work_.tensor({n}, dtype_of<T>);
    copy(local, maximum);
    for (size_t i = 0; i < row_info_.size(); ++i) {
      T& top = maximum.as<T>()[row_info_[i].positive];
      top = std::max(top, static_cast<T>(positive_logit[i]));
    }
    dp.all_reduce(maximum.view(), ReduceOp::max);
    dp.synchronize();

    Tensor terms = work_.zeros({2, n}, DType::f64);  // sums over negatives, and the positive's term
    double* negatives = terms.as<double>();
    double* positives = negatives + n;
    const auto largest = [&](int64_t j) { return static_cast<double>(maximum.as<T>()[j]); };
    for (int64_t j = 0; j < n; ++j)
      negatives[j] =
          sum.as<double>()[j] * std::exp(static_cast<double>(local.as<T>()[j]) - largest(j));
    for (size_t i = 0; i < row_info_.size(); ++i) {
      const int64_t j = row_info_[i].positive;
      positives[j] = std::exp(positive_logit[i] - largest(j));
    }
    dp.all_reduce(terms.view(), ReduceOp::sum);
    dp.synchronize();

    Tensor factor = work_.filled<T>(n, 0);
    for (int64_t j = 0; j < n; ++j)
      if (column_info_.is_positive[static_cast<size_t>(j)])
        factor.as<T>()[j] = static_cast<T>(weight_ / (negatives[j] + positives[j]));
    for (size_t i = 0; i < row_info_.size(); ++i) {
      const int64_t j = row_info_[i].positive;
      loss += weight_ * softplus(largest(j) - positive_logit[i] + std::log(negatives[j]));
      positive_gradient_.as<double>()[i] -=
          weight_ * (negatives[j] / (negatives[j] + positives[j]));
    }
    return factor;
  }

  void add_gradients(TensorView tile, TilePlace at, TensorView drows, TensorView dcolumns) {
    gemm(Transpose::no, Transpose::no, scale_, tile, columns_.slice(at.column, tile.columns()), 1,
         drows.slice(at.row, tile.rows()), stream_);
    gemm(Transpose::yes, Transpose::no, scale_, tile, rows_.slice(at.row, tile.rows()), 1,
         dcolumns.slice(at.column, tile.columns()), stream_);
  }

  const double scale_, bias_, weight_;
  const ConstTensorView rows_, columns_;  // [R, e], [C, e]
  const std::span<const LogitRow> row_info_;
  const LogitColumns& column_info_;
  const LogitExclusions& exclusions_;
  Workspace& work_;
  const Stream stream_;
  const Device device_;
  int64_t tile_rows_, tile_columns_;
  Tensor tile_;
  Tensor positive_logit_, positive_gradient_;  // [R] f64
  Tensor sums_;  // [4] f64, of the passes: loss, sum G, sum G Z, masked entries
};

}  // namespace

ContrastiveOutput contrastive_loss(const LossConfig& config, double log_scale, double bias,
                                   const ContrastiveInput& in, TensorView dq, TensorView dk,
                                   Communicator& dp, Stream stream) {
  check_input(in, dq, dk);
  const bool all = config.candidates == LossCandidates::all, alone = dp.size() == 1;
  const DType dtype = in.queries.dtype();
  const Device device = in.queries.device();
  const int64_t b = in.queries.rows(), n = in.documents.rows(), e = in.queries.columns();

  const std::vector<int64_t> queries = dp.gather(b), documents = dp.gather(n);
  std::vector<int64_t> counts = documents;  // columns of each rank
  if (all)
    std::transform(counts.begin(), counts.end(), queries.begin(), counts.begin(), std::plus());
  const auto own = counts.begin() + dp.rank();
  const int64_t first = std::accumulate(counts.begin(), own, int64_t{0});
  const int64_t total = std::accumulate(own, counts.end(), first);

  ContrastiveOutput out;
  out.queries = std::accumulate(queries.begin(), queries.end(), int64_t{0});
  out.documents = std::accumulate(documents.begin(), documents.end(), int64_t{0});
  fill_zero(dq, stream);
  fill_zero(dk, stream);
  if (out.queries == 0) return out;

  Workspace work;
  LocalTexts texts = local_texts(in, all);
  work.count(texts.columns.bytes() + texts.rows.capacity() * sizeof(LogitRow));
  const LogitColumns column_info = gather_columns(texts.columns, counts, work, dp);
  for (LogitRow& row : texts.rows) {
    if (row.positive >= 0) row.positive += first;
    if (row.self >= 0) row.self += first;
  }
  const LogitMask mask(column_info, texts.rows, config.mask_duplicates, device);
  work.count(mask.bytes());

  // Alone and with two sets of texts, input and output serve as they are.
  Tensor gathered, partial;
  ConstTensorView columns = in.documents, rows = in.queries;
  TensorView dcolumns = dk, drows = dq;
  if (all || !alone) {
    gathered = work.tensor({total, e}, dtype, device);
    partial = work.zeros({total, e}, dtype, device);
    columns = gathered;
    dcolumns = partial;
  }
  if (all) {
    // Every text is a row: gradients of both its roles meet in one place.
    const TensorView slot = gathered.view().slice(first, b + n);
    copy(slot.slice(0, b), in.queries.reshape({b, e}), stream);
    copy(slot.slice(b, n), in.documents.reshape({n, e}), stream);
    rows = slot;
    drows = dcolumns.slice(first, b + n);
  }
  if (!alone) dp.all_gather(all ? rows : in.documents, gathered, counts, stream);
  dp.synchronize(stream);

  const int64_t anchors = all ? 2 * out.queries : out.queries;
  const bool symmetric = config.kind == LossKind::infonce && config.symmetric && !all;
  const double weight = 1 / (static_cast<double>(anchors) * (symmetric ? 2 : 1));
  dispatch_f32_f64(dtype, "contrastive_loss", [&]<class T>() {
    RowBlock<T> block(config, std::exp(log_scale), bias, rows, columns, texts.rows, column_info,
                      mask.exclusions(), weight, work, stream);
    if (config.kind == LossKind::siglip)
      block.pairwise_sigmoid(drows, dcolumns);
    else
      block.softmax(symmetric, drows, dcolumns, dp);
    Tensor sums = work.tensor({4}, DType::f64);
    double* s = sums.as<double>();
    s[0] = block.loss;
    s[1] = block.scale_gradient;
    s[2] = block.bias_gradient;
    s[3] = block.masked;
    dp.all_reduce(sums.view(), ReduceOp::sum);
    dp.synchronize();
    out.loss = s[0];
    out.scale_gradient = s[1];
    out.bias_gradient = s[2];
    out.masked = static_cast<int64_t>(s[3]);
  });

  if (all) {
    Tensor shard;
    TensorView sum = dcolumns;
    if (!alone) {
      shard = work.tensor({b + n, e}, dtype, device);
      dp.reduce_scatter(dcolumns, shard, counts, stream);
      sum = shard;
    }
    copy(dq.reshape({b, e}), sum.slice(0, b), stream);
    copy(dk.reshape({n, e}), sum.slice(b, n), stream);
  } else if (!alone) {
    dp.reduce_scatter(dcolumns, dk, counts, stream);
  }
  dp.synchronize(stream);
  out.peak_bytes = work.bytes();
  return out;
}

}  // namespace amur
