#include "comm/nccl_communicator.h"

#include <algorithm>

#include "comm/trace.h"

namespace amur {
namespace {

using OperationKind = DeviceOperation::Kind;

// Widened bf16 travels in pieces of so many elements: 4 MiB of f32.
constexpr int64_t kWidened = int64_t{1} << 20;

// A part of a tensor, as a vector.
template <class View>
View part_of(View tensor, int64_t first, int64_t count) {
  return tensor.reshape({tensor.elements()}).slice(first, count);
}

// In place.
DeviceOperation operation(OperationKind kind, TensorView tensor, ReduceOp op, int root = 0) {
  return {kind, tensor.raw(), tensor.raw(), tensor.elements(), tensor.dtype(), op, root};
}

// The rows of each rank in `full`.
std::vector<TensorView> blocks_of(TensorView full, std::span<const int64_t> counts) {
  std::vector<TensorView> blocks;
  int64_t first = 0;
  for (const int64_t rows : counts) {
    blocks.push_back(full.slice(first, rows));
    first += rows;
  }
  return blocks;
}

bool all_equal(std::span<const int64_t> counts) {
  return std::all_of(counts.begin(), counts.end(), [&](int64_t c) { return c == counts[0]; });
}

}  // namespace

NcclCommunicator::NcclCommunicator(const void* parent, int color, std::string name, Trace* trace,
                                   std::shared_ptr<NcclGroup> group)
    : MpiCommunicator(parent, color, std::move(name), trace), group_(std::move(group)) {}

bool NcclCommunicator::is_mine(ConstTensorView tensor) const {
  if (tensor.device() == Device::cpu()) return false;
  AMUR_CHECK(tensor.device() == group_->options().device, "a tensor on {}, but {} is over {}",
             tensor.device().text(), name(), group_->options().device.text());
  return true;
}

bool NcclCommunicator::overlaps(Device device) const {
  return device == group_->options().device;
}

void NcclCommunicator::cast(ConstTensorView from, TensorView to) {
  AMUR_CHECK(group_->options().cast, "{} has no kernel to widen bf16", name());
  group_->options().cast(from, to, group_->stream());
}

template <class F>
void NcclCommunicator::in_order(Stream stream, F&& enqueue) {
  std::string text = trace().position().last.text();
  group_->follow(stream);
  enqueue();
  group_->precede(stream);
  group_->track(go_on_beside(), std::move(text));
}

// Slices of several tensors fill the staging buffer, and are summed when it is full.
void NcclCommunicator::sum_widened(std::span<const TensorView> tensors) {
  struct Slice {
    TensorView narrow, wide;
  };
  int64_t total = 0;
  for (const TensorView& t : tensors) total += t.elements();
  if (total == 0) return;
  const TensorView staging = group_->staging(std::min(total, kWidened));
  std::vector<Slice> slices;
  int64_t used = 0;
  const auto flush = [&] {
    if (used == 0) return;
    for (const Slice& s : slices) cast(s.narrow, s.wide);
    const DeviceOperation sum =
        operation(OperationKind::all_reduce, staging.slice(0, used), ReduceOp::sum);
    group_->enqueue({&sum, 1});
    for (const Slice& s : slices) cast(s.wide, s.narrow);
    slices.clear();
    used = 0;
  };
  for (const TensorView& t : tensors)
    for (int64_t at = 0; at < t.elements();) {
      const int64_t count = std::min(staging.elements() - used, t.elements() - at);
      slices.push_back({part_of(t, at, count), staging.slice(used, count)});
      used += count;
      at += count;
      if (used == staging.elements()) flush();
    }
  flush();
}

void NcclCommunicator::reduce(std::span<const TensorView> tensors, ReduceOp op) {
  std::vector<DeviceOperation> operations;
  std::vector<TensorView> narrow;
  for (const TensorView& t : tensors) {
    if (t.elements() == 0) continue;
    if (t.dtype() == DType::bf16 && op == ReduceOp::sum)
      narrow.push_back(t);
    else
      operations.push_back(operation(OperationKind::all_reduce, t, op));
  }
  group_->enqueue(operations);
  sum_widened(narrow);
}

void NcclCommunicator::do_all_reduce(std::span<const TensorView> tensors, ReduceOp op,
                                     Stream stream) {
  if (tensors.empty() || !is_mine(tensors[0]))
    return MpiCommunicator::do_all_reduce(tensors, op, stream);
  in_order(stream, [&] { reduce(tensors, op); });
}

// NCCL's own takes equal counts; otherwise every rank broadcasts its part, all in one call.
void NcclCommunicator::do_all_gather(ConstTensorView shard, TensorView full,
                                     std::span<const int64_t> counts, Stream stream) {
  if (!is_mine(full)) return MpiCommunicator::do_all_gather(shard, full, counts, stream);
  std::vector<DeviceOperation> operations;
  const std::vector<TensorView> blocks = blocks_of(full, counts);
  const auto add = [&](OperationKind kind, const void* from, void* to, size_t bytes, int root) {
    if (bytes > 0)
      operations.push_back(
          {kind, from, to, static_cast<int64_t>(bytes), DType::u8, ReduceOp::sum, root});
  };
  if (all_equal(counts)) {
    add(OperationKind::all_gather, shard.raw(), full.raw(), shard.bytes(), 0);
  } else {
    for (int r = 0; r < size(); ++r) {
      const TensorView& block = blocks[static_cast<size_t>(r)];
      add(OperationKind::broadcast, r == rank() ? shard.raw() : block.raw(), block.raw(),
          block.bytes(), r);
    }
  }
  in_order(stream, [&] { group_->enqueue(operations); });
}

// The same by sums to each rank.
void NcclCommunicator::do_reduce_scatter(TensorView full, TensorView shard,
                                         std::span<const int64_t> counts, Stream stream) {
  if (!is_mine(full)) return MpiCommunicator::do_reduce_scatter(full, shard, counts, stream);
  const std::vector<TensorView> blocks = blocks_of(full, counts);
  if (full.dtype() == DType::bf16)
    return in_order(stream, [&] {
      for (int r = 0; r < size(); ++r) {
        const TensorView& block = blocks[static_cast<size_t>(r)];
        for (int64_t at = 0; at < block.elements(); at += kWidened) {
          const int64_t count = std::min(kWidened, block.elements() - at);
          const TensorView wide = group_->staging(count);
          cast(part_of(block, at, count), wide);
          const DeviceOperation sum = operation(OperationKind::reduce, wide, ReduceOp::sum, r);
          group_->enqueue({&sum, 1});
          if (r == rank()) cast(wide, part_of(shard, at, count));
        }
      }
    });
  std::vector<DeviceOperation> operations;
  if (all_equal(counts)) {
    if (shard.elements() > 0)
      operations.push_back({OperationKind::reduce_scatter, full.raw(), shard.raw(),
                            shard.elements(), full.dtype(), ReduceOp::sum, 0});
  } else {
    for (int r = 0; r < size(); ++r) {
      const TensorView& block = blocks[static_cast<size_t>(r)];
      if (block.elements() == 0) continue;
      operations.push_back(operation(OperationKind::reduce, block, ReduceOp::sum, r));
      if (r == rank()) operations.back().to = shard.raw();
    }
  }
  in_order(stream, [&] { group_->enqueue(operations); });
}

void NcclCommunicator::do_broadcast(std::span<const TensorView> tensors, int root, Stream stream) {
  if (tensors.empty() || !is_mine(tensors[0]))
    return MpiCommunicator::do_broadcast(tensors, root, stream);
  std::vector<DeviceOperation> operations;
  for (const TensorView& t : tensors)
    if (t.bytes() > 0)
      operations.push_back({OperationKind::broadcast, t.raw(), t.raw(),
                            static_cast<int64_t>(t.bytes()), DType::u8, ReduceOp::sum, root});
  in_order(stream, [&] { group_->enqueue(operations); });
}

void NcclCommunicator::do_synchronize(Stream stream) {
  group_->wait();
  if (!is_side_stream(stream)) MpiCommunicator::do_synchronize(stream);
}

Stream NcclCommunicator::do_side_stream(const SideStreamOptions& options) {
  AMUR_CHECK(!side_open_ || side_options_ == options, "the side stream of {} has other options",
             name());
  side_options_ = options;
  side_open_ = true;
  return group_->stream();
}

void NcclCommunicator::do_side_sum(std::span<const TensorView> tensors,
                                   std::span<const TensorView> residuals, uint64_t ticket) {
  AMUR_CHECK(residuals.empty(), "{} does not round what travels by NCCL", name());
  for (const TensorView& t : tensors)
    AMUR_CHECK(is_mine(t), "a tensor on {} for the side stream", t.device().text());
  std::string text = trace().position().last.text();
  group_->follow(Stream(group_->options().device));
  reduce(tensors, ReduceOp::sum);
  group_->track(ticket, std::move(text));
  if (!side_options_.overlap) group_->wait();
}

}  // namespace amur
