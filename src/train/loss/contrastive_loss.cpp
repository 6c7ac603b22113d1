#include "src/train/loss/contrastive_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/contrastive.h"
#include "kernels/contrastive_math.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "src/train/loss/logit_mask.h"

namespace amur {
namespace {

// On a GPU the logits of a tile, 32 MiB, are to stay in its cache between the product and the pass
// over them (docs/gpu.md).
constexpr LossTile kCpuTile{256, 1024}, kGpuTile{2048, 4096};

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

// What products take of embeddings.
DType operand_dtype(const LossConfig& config, DType embeddings) {
  const bool rounded = config.precision == LossPrecision::bf16 && embeddings == DType::f32;
  return rounded ? DType::bf16 : embeddings;
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
    const LossTile most = loss_tile(config, device_);
    const int64_t r = rows.rows();
    tile_rows_ = std::clamp<int64_t>(r, 1, most.rows);
    tile_columns_ = std::clamp<int64_t>(columns.rows(), 1, most.columns);
    logits_ = work.tensor({tile_rows_ * tile_columns_}, dtype_of<T>, device_);
    if (rows.dtype() != dtype_of<T>)
      gradient_ = work.tensor({tile_rows_ * tile_columns_}, rows.dtype(), device_);
    masked_ = work.zeros({r}, DType::f64, device_);
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
    for_each_tile([&](const LogitTile& tile, int64_t r, int64_t c) {
      contrastive_statistics(
          tile, part(row_maximum, tile.place.row, r), part(row_sum, tile.place.row, r),
          part(column_maximum, tile.place.column, c), part(column_sum, tile.place.column, c),
          part(positive_logit_, tile.place.row, r), part(masked_, tile.place.row, r), stream_);
    });
    bring(Device::cpu(),
          {&row_maximum, &row_sum, &column_maximum, &column_sum, &positive_logit_, &masked_});
    for (int64_t i = 0; i < m; ++i) masked += masked_.as<double>()[i];
    Tensor row_factor = finish_rows(row_maximum, row_sum);
    Tensor column_factor;
    if (symmetric) column_factor = finish_columns(column_maximum, column_sum, dp);
    bring(device_,
          {&row_maximum, &row_factor, &column_maximum, &column_factor, &positive_gradient_});
    for_each_tile([&](const LogitTile& tile, int64_t r, int64_t c) {
      const TensorView gradient = gradient_of(tile);
      contrastive_softmax_gradient(
          tile, part(row_maximum, tile.place.row, r), part(row_factor, tile.place.row, r),
          part(column_maximum, tile.place.column, c), part(column_factor, tile.place.column, c),
          part(positive_gradient_, tile.place.row, r), sums_.view().slice(2, 1), gradient, stream_);
      add_gradients(gradient, tile.place, drows, dcolumns);
    });
    bring(Device::cpu(), {&positive_gradient_});
    take_sums();
    for (int64_t i = 0; i < m; ++i)
      scale_gradient += positive_gradient_.as<double>()[i] * positive_logit_.as<double>()[i];
  }

  // Every pair is a decision of its own: one sweep, no statistics.
  void pairwise_sigmoid(TensorView drows, TensorView dcolumns) {
    for_each_tile([&](const LogitTile& tile, int64_t, int64_t) {
      const TensorView gradient = gradient_of(tile);
      contrastive_sigmoid(tile, bias_, weight_, sums_, gradient, stream_);
      add_gradients(gradient, tile.place, drows, dcolumns);
    });
    take_sums();
    masked = sums_.as<double>()[3];
  }

 private:
  static TensorView part(Tensor& whole, int64_t first, int64_t count) {
    return whole.defined() ? whole.view().slice(first, count) : TensorView();
  }

  // Calls f(tile, its rows, its columns); columns run inside, always in the same order and shapes,
  // so that both sweeps see the same bits.
  template <class F>
  void for_each_tile(const F& f) {
    for (int64_t i = 0; i < rows_.rows(); i += tile_rows_) {
      const int64_t m = std::min(tile_rows_, rows_.rows() - i);
      for (int64_t j = 0; j < columns_.rows(); j += tile_columns_) {
        const int64_t n = std::min(tile_columns_, columns_.rows() - j);
        const TensorView logits(logits_.view().raw(), {m, n}, dtype_of<T>, device_);
        gemm(Transpose::no, Transpose::yes, scale_, rows_.slice(i, m), columns_.slice(j, n), 0,
             logits, stream_);
        f(LogitTile{logits, {i, j}, exclusions_}, m, n);
      }
    }
  }
  // Where the gradient of a tile goes: what products take, or else the place of the logits.
  TensorView gradient_of(const LogitTile& tile) {
    if (!gradient_.defined()) return tile.logits;
    return {gradient_.view().raw(), tile.logits.shape(), gradient_.dtype(), device_};
  }
  // What the passes summed up.
  void take_sums() {
    bring(Device::cpu(), {&sums_});
    const double* s = sums_.as<double>();
    loss += s[0];
    bias_gradient = s[1];
    scale_gradient = s[2];
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

  void add_gradients(ConstTensorView gradient, TilePlace at, TensorView drows,
                     TensorView dcolumns) {
    const int64_t m = gradient.rows(), n = gradient.columns();
    gemm(Transpose::no, Transpose::no, scale_, gradient, columns_.slice(at.column, n), 1,
         drows.slice(at.row, m), stream_);
    gemm(Transpose::yes, Transpose::no, scale_, gradient, rows_.slice(at.row, m), 1,
         dcolumns.slice(at.column, n), stream_);
  }

  const double scale_, bias_, weight_;
  const ConstTensorView rows_, columns_;  // [R, e], [C, e], as products take them
  const std::span<const LogitRow> row_info_;
  const LogitColumns& column_info_;
  const LogitExclusions& exclusions_;
  Workspace& work_;
  const Stream stream_;
  const Device device_;
  int64_t tile_rows_, tile_columns_;
  Tensor logits_, gradient_;                            // of a tile; no gradient_: in its place
  Tensor positive_logit_, positive_gradient_, masked_;  // [R] f64
  Tensor sums_;  // [4] f64, of the passes: loss, sum G, sum G Z, masked entries
};

}  // namespace

LossTile loss_tile(const LossConfig& config, Device device) {
  const LossTile chosen = device == Device::cpu() ? kCpuTile : kGpuTile;
  return {config.tile_rows > 0 ? config.tile_rows : chosen.rows,
          config.tile_columns > 0 ? config.tile_columns : chosen.columns};
}

LossBytes contrastive_loss_bytes(const LossConfig& config, const LossExtent& x, Device device) {
  const bool all = config.candidates == LossCandidates::all, apart = all || x.ranks > 1;
  const DType dtype = x.dtype, operand = operand_dtype(config, dtype);
  const bool gpu = device != Device::cpu(), rounded = operand != dtype;
  const bool softmax = config.kind == LossKind::infonce;
  const auto bytes = [](int64_t elements, DType type) {
    return static_cast<size_t>(elements) * size_of(type);
  };
  const int64_t rows = all ? x.queries + x.documents : x.queries;
  const int64_t own = all ? rows : x.documents;
  const int64_t columns = all ? x.all_queries + x.all_documents : x.all_documents;
  const LossTile most = loss_tile(config, device);
  const int64_t tile_rows = std::clamp<int64_t>(rows, 1, most.rows);
  const int64_t tile_columns = std::clamp<int64_t>(columns, 1, most.columns);

  LossBytes b;
  if (apart || rounded) b.embeddings += bytes(columns * x.width, operand);
  if (rounded && !all) b.embeddings += bytes(rows * x.width, operand);
  if (apart) b.gradients += bytes(columns * x.width, dtype);
  if (all && x.ranks > 1) b.gradients += bytes(rows * x.width, dtype);
  b.tiles = bytes(tile_rows * tile_columns, dtype);
  if (rounded) b.tiles += bytes(tile_rows * tile_columns, operand);
  // Of a row: positive logit and gradient, masked entries; maximum, sum, factor. Of a column:
  // maximum, sum, factor; its own maximum, negatives and positives while they are added up.
  b.statistics = static_cast<size_t>(rows) * (3 * 8 + (softmax ? 16 : 0)) + 2 * 4 * 8;
  if (softmax && config.symmetric && !all) b.statistics += static_cast<size_t>(columns) * (16 + 20);
  if (gpu) b.statistics *= 2;  // there and on the host
  // Ids travel as three numbers a column; then they are kept in 17 bytes, and the columns twice
  // sorted. A row's range is empty.
  b.bookkeeping = static_cast<size_t>(own + columns) * (3 * 8 + 17) +
                  static_cast<size_t>(rows) * (sizeof(LogitRow) + (gpu ? 2 : 1) * 3 * 8) + 8;
  if (config.mask_duplicates) b.bookkeeping += static_cast<size_t>(columns) * (gpu ? 2 : 1) * 2 * 4;
  // Products have 32 MiB, passes their panels' sums.
  if (gpu) b.work_space = (32u << 20) + (4u << 20);
  return b;
}

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

  // Alone, with two sets of texts and nothing rounded, input and output serve as they are.
  const DType operand = operand_dtype(config, dtype);
  const bool rounded = operand != dtype, apart = all || !alone;
  Tensor gathered, partial, own_rows;
  ConstTensorView columns = in.documents, rows = in.queries, own_columns = in.documents;
  TensorView dcolumns = dk, drows = dq;
  if (apart || rounded) {
    gathered = work.tensor({total, e}, operand, device);
    columns = gathered;
  }
  if (apart) {
    partial = work.zeros({total, e}, dtype, device);
    dcolumns = partial;
  }
  if (all) {
    // Every text is a row: gradients of both its roles meet in one place.
    const TensorView slot = gathered.view().slice(first, b + n);
    cast(in.queries, slot.slice(0, b), stream);
    cast(in.documents, slot.slice(b, n), stream);
    rows = own_columns = slot;
    drows = dcolumns.slice(first, b + n);
  } else if (rounded) {
    own_rows = work.tensor({b, e}, operand, device);
    cast(in.queries, own_rows, stream);
    rows = own_rows;
    const TensorView slot = gathered.view().slice(first, n);
    cast(in.documents, slot, stream);
    own_columns = slot;
  }
  if (!alone) dp.all_gather(own_columns, gathered, counts, stream);
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
