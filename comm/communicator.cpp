#include "comm/communicator.h"

#include <algorithm>
#include <numeric>

#include "comm/trace.h"
#include "src/core/hash.h"

namespace amur {
namespace {

const char* all_reduce_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "all_reduce sum";
    case ReduceOp::max:
      return "all_reduce max";
    case ReduceOp::min:
      return "all_reduce min";
  }
  return "all_reduce";
}

uint64_t fold(uint64_t hash, uint64_t value) {
  return mix64(hash ^ value) + 0x9e3779b97f4a7c15u;
}

void require(bool ok, const char* op, const std::string& message, CallSite site) {
  if (!ok) [[unlikely]]
    throw InternalError(fmt::format("{}: {}", op, message), site);
}

// A list as one record: total count, and a hash of every tensor's dtype and count.
CollectiveRecord describe_list(std::span<const TensorView> tensors, const char* op, CallSite site) {
  CollectiveRecord r;
  r.op = op;
  r.site = site;
  r.count = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorView& t = tensors[i];
    require(t.elements() == 0 || t.defined(), op, fmt::format("tensor {} is undefined", i), site);
    require(t.device() == tensors[0].device(), op,
            fmt::format("tensor {} is on {}, the first on {}", i, t.device().text(),
                        tensors[0].device().text()),
            site);
    r.count += t.elements();
    for (const uint64_t part :
         {static_cast<uint64_t>(t.device().kind), static_cast<uint64_t>(t.dtype()),
          static_cast<uint64_t>(t.elements())})
      r.detail = fold(r.detail, part);
  }
  if (!tensors.empty()) r.dtype = tensors[0].dtype();
  return r;
}

// Checks what all_gather and reduce_scatter share; returns the first row of this rank.
int64_t check_rows(const char* op, ConstTensorView shard, ConstTensorView full,
                   std::span<const int64_t> counts, int rank, int size, CallSite site) {
  require(counts.size() == static_cast<size_t>(size), op,
          fmt::format("{} counts for {} ranks", counts.size(), size), site);
  for (int64_t c : counts) require(c >= 0, op, fmt::format("a count is {}", c), site);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  require(full.shape().dims() > 0 && full.rows() == total, op,
          fmt::format("full is {}, the counts add up to {} rows", full.shape().text(), total),
          site);
  const int64_t rows = counts[static_cast<size_t>(rank)];
  require(shard.shape() == full.shape().with(0, rows), op,
          fmt::format("shard is {}, wanted {}", shard.shape().text(),
                      full.shape().with(0, rows).text()),
          site);
  require(shard.dtype() == full.dtype(), op,
          fmt::format("shard is {}, full is {}", name_of(shard.dtype()), name_of(full.dtype())),
          site);
  require(shard.device() == full.device(), op, "shard and full are on different devices", site);
  require((shard.elements() == 0 || shard.defined()) && (full.elements() == 0 || full.defined()),
          op, "an undefined tensor", site);
  const int64_t first = std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
  if (shard.bytes() > 0) {
    const auto* slot = static_cast<const std::byte*>(full.slice(first, rows).raw());
    const auto* begin = static_cast<const std::byte*>(full.raw());
    const auto* at = static_cast<const std::byte*>(shard.raw());
    const bool apart = at + shard.bytes() <= begin || begin + full.bytes() <= at;
    require(apart || at == slot, op, "shard overlaps full, but is not its own slot", site);
  }
  return first;
}

CollectiveRecord describe_rows(const char* op, ConstTensorView full,
                               std::span<const int64_t> counts, CallSite site) {
  CollectiveRecord r;
  r.op = op;
  r.dtype = full.dtype();
  r.count = full.elements();
  r.detail = fold(r.detail, static_cast<uint64_t>(full.device().kind));
  for (int64_t c : counts) r.detail = fold(r.detail, static_cast<uint64_t>(c));
  r.site = site;
  return r;
}

CollectiveRecord describe(const char* op, int root, CallSite site) {
  CollectiveRecord r;
  r.op = op;
  r.root = root;
  r.site = site;
  return r;
}

}  // namespace

Communicator::Communicator(int rank, int size, std::string name, Trace* trace)
    : rank_(rank), size_(size), name_(std::move(name)), trace_(trace) {}

template <class Backend>
void Communicator::run(CollectiveRecord record, Backend&& backend) {
  record.group = name_;
  record.sequence = ++sequence_;
  const char* op = record.op;
  const CallSite site = record.site;
  if (size_ == 1) {
    trace_->enter(std::move(record));
    trace_->leave();
    return;
  }
  trace_->throw_if_interrupted();
  trace_->enter(record);
  goes_on_ = false;
  try {
    if (trace_->check_collectives()) compare_over_group(record);
    backend();
  } catch (const CommError& error) {
    throw CommError("{}.{} at {}: {}", name_, op, site.text(), error.what());
  }
  if (!goes_on_) trace_->leave();
}

uint64_t Communicator::go_on_beside() {
  goes_on_ = true;
  return trace_->detach();
}

bool Communicator::is_side_stream(Stream stream) const {
  return side_.handle() != nullptr && stream.handle() == side_.handle();
}

// The check comes when the sum is asked for, by the caller's thread; the sum itself may come later.
void Communicator::start_side_sum(CollectiveRecord record, std::span<const TensorView> tensors,
                                  std::span<const TensorView> residuals) {
  record.group = name_;
  record.sequence = ++sequence_;
  const CollectiveRecord kept = record;
  trace_->throw_if_interrupted();
  trace_->enter(std::move(record));
  try {
    if (trace_->check_collectives()) compare_over_group(kept);
    do_side_sum(tensors, residuals, trace_->detach());
  } catch (const CommError& error) {
    throw CommError("{}.{} at {}: {}", name_, kept.op, kept.site.text(), error.what());
  }
}

void Communicator::compare_over_group(const CollectiveRecord& record) {
  // max(h) and max(~h) = ~min(h) in one go: all equal where they say the same.
  const auto hash = static_cast<int64_t>(record.hash());
  int64_t pair[2] = {hash, ~hash};
  host_all_reduce(TensorView(pair, {2}, DType::i64), ReduceOp::max);
  if (pair[0] == ~pair[1]) return;
  const auto calls = gather_texts(fmt::format("{}: {}", trace_->label(), record.text()));
  std::string text = "the ranks entered different collectives:";
  for (const std::string& call : calls) text += "\n  " + call;
  throw CommError("{}", text);
}

void Communicator::all_reduce(std::span<const TensorView> tensors, ReduceOp op, Stream stream,
                              CallSite site) {
  CollectiveRecord record = describe_list(tensors, all_reduce_name(op), site);
  for (const TensorView& t : tensors)
    require(t.dtype() != DType::u8 || op != ReduceOp::sum, record.op, "u8 has no sum", site);
  if (is_side_stream(stream)) {
    require(op == ReduceOp::sum, record.op, "the side stream takes sums only", site);
    return start_side_sum(std::move(record), tensors, {});
  }
  run(std::move(record), [&] { do_all_reduce(tensors, op, stream); });
}

void Communicator::all_reduce(TensorView tensor, ReduceOp op, Stream stream, CallSite site) {
  all_reduce(std::span<const TensorView>(&tensor, 1), op, stream, site);
}

void Communicator::all_gather(ConstTensorView shard, TensorView full,
                              std::span<const int64_t> counts, Stream stream, CallSite site) {
  check_rows("all_gather", shard, full, counts, rank_, size_, site);
  run(describe_rows("all_gather", full, counts, site),
      [&] { do_all_gather(shard, full, counts, stream); });
  if (size_ == 1 && shard.raw() != full.raw()) copy(full, shard, stream);
}

void Communicator::reduce_scatter(TensorView full, TensorView shard,
                                  std::span<const int64_t> counts, Stream stream, CallSite site) {
  check_rows("reduce_scatter", shard, full, counts, rank_, size_, site);
  require(full.dtype() != DType::u8, "reduce_scatter", "u8 has no sum", site);
  run(describe_rows("reduce_scatter", full, counts, site),
      [&] { do_reduce_scatter(full, shard, counts, stream); });
  if (size_ == 1 && shard.raw() != full.raw()) copy(shard, full, stream);
}

void Communicator::broadcast(std::span<const TensorView> tensors, int root, Stream stream,
                             CallSite site) {
  require(root >= 0 && root < size_, "broadcast", fmt::format("root {} of {}", root, size_), site);
  CollectiveRecord record = describe_list(tensors, "broadcast", site);
  record.root = root;
  run(std::move(record), [&] { do_broadcast(tensors, root, stream); });
}

void Communicator::all_reduce_rounded(std::span<const TensorView> tensors,
                                      std::span<const TensorView> residuals, Stream stream,
                                      CallSite site) {
  CollectiveRecord record = describe_list(tensors, "all_reduce rounded sum", site);
  require(tensors.size() == residuals.size(), record.op, "a residual for each tensor", site);
  for (size_t i = 0; i < tensors.size(); ++i)
    require(tensors[i].dtype() == DType::f32 && residuals[i].dtype() == DType::f32 &&
                residuals[i].shape() == tensors[i].shape(),
            record.op, fmt::format("tensor {} and its residual are not f32 of one shape", i), site);
  if (size_ == 1) {
    for (const TensorView& r : residuals) fill_zero(r, stream);
    return;
  }
  require(is_side_stream(stream), record.op, "wants the side stream", site);
  start_side_sum(std::move(record), tensors, residuals);
}

Stream Communicator::side_stream(const SideStreamOptions& options, CallSite site) {
  if (size_ == 1) return {};
  run(describe("side_stream", -1, site), [&] { side_ = do_side_stream(options); });
  return side_;
}

void Communicator::synchronize(Stream stream, CallSite site) {
  trace_->throw_if_interrupted();
  try {
    do_synchronize(stream);
  } catch (const CommError& error) {
    throw CommError("{}.synchronize at {}: {}", name_, site.text(), error.what());
  }
}

void Communicator::barrier(CallSite site) {
  run(describe("barrier", -1, site), [&] { host_barrier(); });
}

template <class T>
T Communicator::reduce_value(T value, ReduceOp op, const char* name, CallSite site) {
  CollectiveRecord record = describe(name, -1, site);
  record.dtype = dtype_of<T>;
  record.count = 1;
  run(std::move(record), [&] { host_all_reduce(TensorView(&value, {1}, dtype_of<T>), op); });
  return value;
}

bool Communicator::all_agree(bool ok, CallSite site) {
  return reduce_value<uint8_t>(ok ? 1 : 0, ReduceOp::min, "all_agree", site) == 1;
}
int64_t Communicator::sum(int64_t value, CallSite site) {
  return reduce_value(value, ReduceOp::sum, "sum", site);
}
double Communicator::sum(double value, CallSite site) {
  return reduce_value(value, ReduceOp::sum, "sum", site);
}
int64_t Communicator::max(int64_t value, CallSite site) {
  return reduce_value(value, ReduceOp::max, "max", site);
}
double Communicator::max(double value, CallSite site) {
  return reduce_value(value, ReduceOp::max, "max", site);
}
int64_t Communicator::min(int64_t value, CallSite site) {
  return reduce_value(value, ReduceOp::min, "min", site);
}

std::vector<int64_t> Communicator::gather(int64_t value, CallSite site) {
  std::vector<int64_t> all(static_cast<size_t>(size_), value);
  CollectiveRecord record = describe("gather", -1, site);
  record.dtype = DType::i64;
  record.count = size_;
  run(std::move(record), [&] {
    const std::vector<int64_t> counts(static_cast<size_t>(size_), 1);
    host_all_gather(ConstTensorView(&value, {1}, DType::i64),
                    TensorView(all.data(), {size_}, DType::i64), counts);
  });
  return all;
}

std::vector<std::string> Communicator::gather_texts(std::string_view text) {
  std::vector<int64_t> lengths(static_cast<size_t>(size_));
  const auto length = static_cast<int64_t>(text.size());
  const std::vector<int64_t> ones(static_cast<size_t>(size_), 1);
  host_all_gather(ConstTensorView(&length, {1}, DType::i64),
                  TensorView(lengths.data(), {size_}, DType::i64), ones);
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  std::string joined(static_cast<size_t>(total), '\0');
  host_all_gather(ConstTensorView(text.data(), {length}, DType::u8),
                  TensorView(joined.data(), {total}, DType::u8), lengths);
  std::vector<std::string> texts;
  size_t at = 0;
  for (int64_t n : lengths) {
    texts.push_back(joined.substr(at, static_cast<size_t>(n)));
    at += static_cast<size_t>(n);
  }
  return texts;
}

std::vector<std::string> Communicator::gather(std::string_view text, CallSite site) {
  std::vector<std::string> all(1, std::string(text));
  run(describe("gather text", -1, site), [&] { all = gather_texts(text); });
  return all;
}

void Communicator::broadcast(std::vector<std::byte>& bytes, int root, CallSite site) {
  require(root >= 0 && root < size_, "broadcast", fmt::format("root {} of {}", root, size_), site);
  run(describe("broadcast bytes", root, site), [&] {
    auto length = static_cast<int64_t>(bytes.size());
    host_broadcast(TensorView(&length, {1}, DType::i64), root);
    bytes.resize(static_cast<size_t>(length));
    host_broadcast(TensorView(bytes.data(), {length}, DType::u8), root);
  });
}

void Communicator::broadcast(std::string& text, int root, CallSite site) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  std::vector<std::byte> bytes(begin, begin + text.size());
  broadcast(bytes, root, site);
  text.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace amur
