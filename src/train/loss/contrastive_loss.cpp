#include "src/train/loss/contrastive_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "kernels/contrastive.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "src/train/loss/logit_mask.h"

namespace amur {
namespace {

// docs/gpu.md ("The loss stage: what to expect") says what these numbers are for.
constexpr LossTile kCpuTile{256, 1024}, kGpuTile{1536, 5504};
// On a GPU rounded gradients of so many tiles, one below the other, are multiplied at once.
constexpr int64_t kTilesOfBlock = 3;

// Hands out the stage's memory and counts it.
class Workspace {
 public:
  Tensor tensor(Shape shape, DType dtype, Device device = Device::cpu()) {
    Tensor t(shape, dtype, device);
    count(t.bytes());
    return t;
  }
  void release(Tensor& t) {
    now_ -= t.bytes();
    t = Tensor();
  }
  Tensor zeros(Shape shape, DType dtype, Device device = Device::cpu()) {
    Tensor t = tensor(shape, dtype, device);
    fill_zero(t);
    return t;
  }
  void count(size_t bytes) {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  size_t peak_bytes() const { return peak_; }

 private:
  size_t now_ = 0, peak_ = 0;
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

// Of the logits of a rank. Gradients of a block, rows x columns, are multiplied at once.
struct TileSizes {
  int64_t rows, columns, block_rows;
};
TileSizes tile_sizes(const LossConfig& config, int64_t rows, int64_t columns, bool rounded,
                     Device device) {
  const LossTile most = loss_tile(config, device);
  TileSizes sizes{};
  sizes.rows = std::clamp<int64_t>(rows, 1, most.rows);
  sizes.columns = std::clamp<int64_t>(columns, 1, most.columns);
  const int64_t tiles = rounded && device != Device::cpu() ? kTilesOfBlock : 1;
  sizes.block_rows = std::clamp<int64_t>(rows, 1, sizes.rows * tiles);
  return sizes;
}

// Of a rank's logits.
struct LogitExtent {
  int64_t rows, columns;
};
LogitExtent logit_extent(const LossConfig& config, const LossExtent& x) {
  if (config.candidates == LossCandidates::all)
    return {x.queries + x.documents, x.all_queries + x.all_documents};
  return {x.queries, x.all_documents};
}

// The row block of this rank against all columns. Negatives are summed in the tiles; each row's one
// positive entry is kept apart and computed in double, so that a nearly solved batch, where 1 - P
// would cancel, loses nothing.
//
// Everything is computed where the embeddings are; only sums over the whole come to host memory.
template <class T>
class RowBlock {
 public:
  RowBlock(const LossConfig& config, double scale, double bias, ConstTensorView rows,
           ConstTensorView columns, const LogitExclusions& exclusions, double weight,
           Workspace& work, Stream stream)
      : scale_(scale),
        bias_(bias),
        weight_(weight),
        rows_(rows),
        columns_(columns),
        exclusions_(exclusions),
        work_(work),
        stream_(stream),
        device_(rows.device()),
        rounded_(rows.dtype() != dtype_of<T>),
        sizes_(tile_sizes(config, rows.rows(), columns.rows(), rounded_, device_)) {
    parts_ = logit_parts(sizes_.rows, sizes_.columns, device_);
    logits_ = work.tensor({sizes_.rows * sizes_.columns}, dtype_of<T>, device_);
    sums_ = work.zeros({4, parts_.whole}, DType::f64, device_);
  }

  double loss = 0, scale_gradient = 0, bias_gradient = 0, masked = 0;

  // Softmax over rows and, with `symmetric`, over the columns that are positives.
  void softmax(bool symmetric, TensorView drows, TensorView dcolumns, Communicator& dp) {
    const int64_t m = rows_.rows(), n = symmetric ? columns_.rows() : 0;
    Sums of_rows = sums(parts_.rows, m), of_columns = sums(parts_.columns, n);
    Tensor positive_logit = work_.zeros({m}, DType::f64, device_);
    for_each_tile(
        [&](const LogitTile& tile, int64_t) {
          contrastive_statistics(tile, of_rows.view(), symmetric ? of_columns.view() : LogSums(),
                                 positive_logit, sums_.view().slice(3, 1), stream_);
        },
        [](TilePlace, int64_t, int64_t) {});

    const auto vectors = [&](int64_t count) { return work_.tensor({count}, dtype_of<T>, device_); };
    Tensor row_maximum = vectors(m), row_factor = vectors(m);
    Tensor column_maximum = vectors(n), column_factor = vectors(n);
    Tensor positive_gradient = work_.tensor({m}, DType::f64, device_);
    Tensor terms = work_.tensor({2, m}, DType::f64, device_);
    SoftmaxEnds ends;
    ends.weight = weight_;
    ends.positive = exclusions_.positive;
    ends.positive_logit = positive_logit;
    ends.row_maximum = row_maximum;
    ends.row_factor = row_factor;
    ends.row_sum = of_rows.take(row_maximum, stream_);
    ends.positive_gradient = positive_gradient;
    ends.terms = terms;
    softmax_step(SoftmaxStep::rows, ends, stream_);
    Tensor column_terms = work_.zeros({2, n}, DType::f64, device_);
    if (symmetric) {
      ends.column_maximum = column_maximum;
      ends.column_factor = column_factor;
      ends.column_sum = of_columns.take(column_maximum, stream_);
      ends.own_maximum = of_columns.maximum.view().slice(0, 1);
      ends.column_terms = column_terms;
      softmax_step(SoftmaxStep::column_maxima, ends, stream_);
      dp.all_reduce(column_maximum.view(), ReduceOp::max, stream_);
      dp.synchronize(stream_);
      softmax_step(SoftmaxStep::column_terms, ends, stream_);
      dp.all_reduce(column_terms.view(), ReduceOp::sum, stream_);
      dp.synchronize(stream_);
      softmax_step(SoftmaxStep::columns, ends, stream_);
    }
    for (Tensor* t :
         {&of_rows.maximum, &of_rows.sum, &of_columns.maximum, &of_columns.sum, &column_terms})
      work_.release(*t);

    const auto there = [&](Tensor& of_columns_only) {
      return symmetric ? of_columns_only.view() : TensorView();
    };
    make_room_for_gradients();
    for_each_tile(
        [&](const LogitTile& tile, int64_t row) {
          contrastive_softmax_gradient(tile, row_maximum, row_factor, there(column_maximum),
                                       there(column_factor), positive_gradient,
                                       sums_.view().slice(2, 1), gradient_of(tile, row), stream_);
        },
        [&](TilePlace at, int64_t rows, int64_t columns) {
          add_gradients(at, rows, columns, drows, dcolumns);
        });
    take_sums();
    const std::vector<double> of_terms = sums_of_parts(terms, stream_);
    loss += of_terms[0];
    scale_gradient += of_terms[1];
  }

  // Every pair is a decision of its own: one sweep, no statistics.
  void pairwise_sigmoid(TensorView drows, TensorView dcolumns) {
    make_room_for_gradients();
    for_each_tile(
        [&](const LogitTile& tile, int64_t row) {
          contrastive_sigmoid(tile, bias_, weight_, sums_, gradient_of(tile, row), stream_);
        },
        [&](TilePlace at, int64_t rows, int64_t columns) {
          add_gradients(at, rows, columns, drows, dcolumns);
        });
    take_sums();
  }

 private:
  struct Sums {
    Tensor maximum, sum;  // as of LogSums

    LogSums view() { return {maximum, sum}; }
    // All parts together: the maxima go to `to`, the sums are returned.
    ConstTensorView take(Tensor& to, Stream stream) {
      merge_log_sums(view(), stream);
      copy(to, maximum.view().slice(0, 1).reshape(to.shape()), stream);
      return sum.view().slice(0, 1);
    }
  };
  Sums sums(int64_t parts, int64_t n) {
    return {work_.zeros({parts, n}, dtype_of<T>, device_),
            work_.zeros({parts, n}, DType::f64, device_)};
  }

  // Calls f(tile, its first row in its block) for all tiles of a block of rows x columns of a tile,
  // then g(place of the block, its rows, its columns). Always in the same order and shapes, so that
  // both sweeps see the same bits.
  template <class F, class G>
  void for_each_tile(const F& f, const G& g) {
    for (int64_t i = 0; i < rows_.rows(); i += sizes_.block_rows) {
      const int64_t end = std::min(i + sizes_.block_rows, rows_.rows());
      for (int64_t j = 0; j < columns_.rows(); j += sizes_.columns) {
        const int64_t n = std::min(sizes_.columns, columns_.rows() - j);
        for (int64_t k = i; k < end; k += sizes_.rows) {
          const int64_t m = std::min(sizes_.rows, end - k);
          const TensorView logits(logits_.view().raw(), {m, n}, dtype_of<T>, device_);
          gemm(Transpose::no, Transpose::yes, scale_, rows_.slice(k, m), columns_.slice(j, n), 0,
               logits, stream_);
          f(LogitTile{logits, {k, j}, exclusions_}, k - i);
        }
        g(TilePlace{i, j}, end - i, n);
      }
    }
  }
  // Gradients of a block: what products take, or else the logits' place, that of one tile.
  void make_room_for_gradients() {
    if (rounded_)
      gradient_ = work_.tensor({sizes_.block_rows * sizes_.columns}, rows_.dtype(), device_);
  }
  TensorView gradient_of_block(int64_t rows, int64_t columns) {
    Tensor& memory = rounded_ ? gradient_ : logits_;
    return {memory.view().raw(), {rows, columns}, memory.dtype(), device_};
  }
  TensorView gradient_of(const LogitTile& tile, int64_t row) {
    const int64_t m = tile.logits.rows();
    return gradient_of_block(row + m, tile.logits.columns()).slice(row, m);
  }
  void add_gradients(TilePlace at, int64_t rows, int64_t columns, TensorView drows,
                     TensorView dcolumns) {
    const ConstTensorView gradient = gradient_of_block(rows, columns);
    gemm(Transpose::no, Transpose::no, scale_, gradient, columns_.slice(at.column, columns), 1,
         drows.slice(at.row, rows), stream_);
    gemm(Transpose::yes, Transpose::no, scale_, gradient, rows_.slice(at.row, rows), 1,
         dcolumns.slice(at.column, columns), stream_);
  }
  // What the passes summed up.
  void take_sums() {
    const std::vector<double> s = sums_of_parts(sums_, stream_);
    loss += s[0];
    bias_gradient += s[1];
    scale_gradient += s[2];
    masked += s[3];
  }

  const double scale_, bias_, weight_;
  const ConstTensorView rows_, columns_;  // [R, e], [C, e], as products take them
  const LogitExclusions& exclusions_;
  Workspace& work_;
  const Stream stream_;
  const Device device_;
  const bool rounded_;
  const TileSizes sizes_;
  LogitParts parts_;
  Tensor logits_;    // of a tile
  Tensor gradient_;  // of a block, where it is rounded
  Tensor sums_;      // [4, parts] f64, of the passes: loss, sum G, sum G Z, masked entries
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
  const auto [rows, columns] = logit_extent(config, x);
  const int64_t own = all ? rows : x.documents;
  const TileSizes tile = tile_sizes(config, rows, columns, rounded, device);
  const LogitParts parts = logit_parts(tile.rows, tile.columns, device);
  const int64_t column_ends = softmax && config.symmetric && !all ? columns : 0;

  LossBytes b;
  if (apart || rounded) b.embeddings += bytes(columns * x.width, operand);
  if (rounded && !all) b.embeddings += bytes(rows * x.width, operand);
  if (apart) b.gradients += bytes(columns * x.width, dtype);
  if (all && x.ranks > 1) b.gradients += bytes(rows * x.width, dtype);
  b.tiles = bytes(tile.rows * tile.columns, dtype);
  b.statistics = bytes(4 * parts.whole + 4, DType::f64);
  // The parts of rows and columns, and what columns are added up in, are gone when gradients come.
  const size_t gradients = rounded ? bytes(tile.block_rows * tile.columns, operand) : 0;
  size_t sums = 0;
  if (softmax) {
    b.statistics += static_cast<size_t>(rows) * (4 * 8 + 2 * size_of(dtype)) +
                    static_cast<size_t>(column_ends) * 2 * size_of(dtype);
    sums = static_cast<size_t>(parts.rows * rows + parts.columns * column_ends) *
               (size_of(dtype) + 8) +
           static_cast<size_t>(column_ends) * 2 * 8;
  }
  b.tiles += std::max(gradients, sums);
  // Ids travel as three numbers a column; then they are kept in 17 bytes, and the columns twice
  // sorted. A row's range is empty.
  b.bookkeeping = static_cast<size_t>(own + columns) * (3 * 8 + 17) +
                  static_cast<size_t>(rows) * (sizeof(LogitRow) + (gpu ? 2 : 1) * 3 * 8) + 8;
  if (config.mask_duplicates) b.bookkeeping += static_cast<size_t>(columns) * (gpu ? 2 : 1) * 2 * 4;
  if (gpu) b.work_space = 32u << 20;  // of products
  return b;
}

std::vector<Product> contrastive_loss_products(const LossConfig& config, const LossExtent& x,
                                               Device device) {
  const DType operand = operand_dtype(config, x.dtype);
  const auto [rows, columns] = logit_extent(config, x);
  const TileSizes tile = tile_sizes(config, rows, columns, operand != x.dtype, device);
  // What all of them but the last have, and the last one.
  const auto sizes = [](int64_t all, int64_t each) {
    std::vector<int64_t> list;
    if (all >= each) list.push_back(each);
    if (all % each > 0) list.push_back(all % each);
    return list;
  };
  // The last block may end with a tile of its own size.
  std::set<int64_t> tile_rows;
  for (const int64_t block : sizes(rows, tile.block_rows))
    for (const int64_t m : sizes(block, tile.rows)) tile_rows.insert(m);
  constexpr Transpose no = Transpose::no, yes = Transpose::yes;
  std::vector<Product> list;
  for (const int64_t n : sizes(columns, tile.columns)) {
    for (const int64_t m : tile_rows) list.push_back({no, yes, m, n, x.width, operand, x.dtype});
    for (const int64_t m : sizes(rows, tile.block_rows)) {
      list.push_back({no, no, m, x.width, n, operand, x.dtype, true});
      list.push_back({yes, no, n, x.width, m, operand, x.dtype, true});
    }
  }
  return list;
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
    RowBlock<T> block(config, std::exp(log_scale), bias, rows, columns, mask.exclusions(), weight,
                      work, stream);
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
  out.peak_bytes = work.peak_bytes();
  return out;
}

}  // namespace amur
