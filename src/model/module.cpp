#include "src/model/module.h"

#include <algorithm>

namespace amur {

namespace {

constexpr size_t kAlignment = 64;

size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

}  // namespace

SavedTensors::SavedTensors(Device device, size_t block_bytes)
    : device_(device), block_bytes_(std::max(round_up(block_bytes, kAlignment), kAlignment)) {}

size_t SavedTensors::rounded_bytes(const Shape& shape, DType dtype) {
  const size_t bytes = static_cast<size_t>(shape.elements()) * size_of(dtype);
  return std::max(round_up(bytes, kAlignment), kAlignment);
}

void SavedTensors::reserve(size_t bytes) {
  if (bytes == 0 || (blocks_.size() == 1 && bytes <= blocks_[0].memory.bytes())) return;
  release_blocks();
  blocks_.emplace_back();
  blocks_[0].memory =
      Tensor({static_cast<int64_t>(round_up(bytes, block_bytes_))}, DType::u8, device_);
}

TensorView SavedTensors::push(const void* owner, Shape shape, DType dtype) {
  const size_t need = rounded_bytes(shape, dtype);
  if (blocks_.empty()) blocks_.emplace_back();
  if (blocks_[current_].used != 0 &&
      blocks_[current_].used + need > blocks_[current_].memory.bytes())
    if (++current_ == blocks_.size()) blocks_.emplace_back();
  Block& block = blocks_[current_];
  if (block.used + need > block.memory.bytes()) {
    block.memory = Tensor();  // first free, then allocate
    block.memory = Tensor({static_cast<int64_t>(round_up(need, block_bytes_))}, DType::u8, device_);
  }
  auto* start = static_cast<std::byte*>(block.memory.view().raw()) + block.used;
  const TensorView view(start, shape, dtype, device_);
  entries_.push_back({owner, view, current_, block.used});
  block.used += need;
  bytes_ += need;
  peak_ = std::max(peak_, bytes_);
  return view;
}

TensorView SavedTensors::pop(const void* owner) {
  AMUR_CHECK(!entries_.empty(), "nothing is saved");
  AMUR_CHECK(entries_.back().owner == owner, "the newest of {} saved tensors, {} {}, is another's",
             entries_.size(), name_of(entries_.back().view.dtype()),
             entries_.back().view.shape().text());
  const TensorView view = entries_.back().view;
  drop_newest();
  return view;
}

TensorView SavedTensors::peek(const void* owner) const {
  const auto found = std::find_if(entries_.rbegin(), entries_.rend(),
                                  [&](const Entry& e) { return e.owner == owner; });
  AMUR_CHECK(found != entries_.rend(), "none of the {} saved tensors is of this owner",
             entries_.size());
  return found->view;
}

void SavedTensors::rewind(size_t mark) {
  AMUR_CHECK(mark <= entries_.size(), "rewind to {} of {}", mark, entries_.size());
  while (entries_.size() > mark) drop_newest();
}

void SavedTensors::drop_newest() {
  const Entry& newest = entries_.back();
  blocks_[newest.block].used = newest.offset;
  current_ = newest.offset == 0 && newest.block > 0 ? newest.block - 1 : newest.block;
  bytes_ -= rounded_bytes(newest.view.shape(), newest.view.dtype());
  entries_.pop_back();
}

size_t SavedTensors::held_bytes() const {
  size_t bytes = 0;
  for (const Block& block : blocks_) bytes += block.memory.bytes();
  return bytes;
}

void SavedTensors::release_blocks() {
  AMUR_CHECK(entries_.empty(), "{} tensors are still saved", entries_.size());
  blocks_.clear();
  current_ = 0;
}

}  // namespace amur
