#include "src/train/loss/logit_mask.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <utility>

namespace amur {
namespace {

template <class T>
size_t bytes_of(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

// Columns by their ids, in a table that is hashed: sorting, and searching what is sorted, would
// take longer than a GPU takes for all logits.
class ColumnsById {
 public:
  // Appends the columns to `list`, those of one id side by side, ascending. With `only`, those
  // alone for which it is not 0.
  ColumnsById(const std::vector<uint64_t>& ids, const std::vector<uint8_t>* only,
              std::vector<int32_t>& list) {
    const size_t count = ids.size();
    shift_ = 64 - std::countr_zero(std::bit_ceil(count + count / 2 + 2));
    slots_.resize(size_t{1} << (64 - shift_));
    std::vector<uint32_t> slot_of(count);
    for (size_t j = 0; j < count; ++j) {
      if (only && !(*only)[j]) continue;
      const size_t slot = find(ids[j]);
      slot_of[j] = static_cast<uint32_t>(slot);
      slots_[slot].id = ids[j];
      ++slots_[slot].count;
    }
    base_ = std::ssize(list);
    int32_t next = 0;
    list.resize(list.size() +
                (only ? count - static_cast<size_t>(std::ranges::count(*only, 0)) : count));
    for (size_t j = 0; j < count; ++j) {
      if (only && !(*only)[j]) continue;
      Slot& slot = slots_[slot_of[j]];
      if (slot.first < 0) {
        slot.first = next;
        next += std::exchange(slot.count, 0);
      }
      list[static_cast<size_t>(base_ + slot.first + slot.count++)] = static_cast<int32_t>(j);
    }
  }

  // Where the columns of this id stand in the list.
  struct Range {
    int64_t first, last;
  };
  Range range(uint64_t id) const {
    const Slot& slot = slots_[find(id)];
    const int64_t first = base_ + slot.first;
    return {first, first + slot.count};
  }

 private:
  struct Slot {
    uint64_t id = 0;
    int32_t first = -1, count = 0;  // from `base_` on; no count: nothing is here
  };
  // The slot of the id, or the empty one where it would be.
  size_t find(uint64_t id) const {
    size_t at = id * 0x9e3779b97f4a7c15u >> shift_;
    while (slots_[at].count > 0 && slots_[at].id != id) at = (at + 1) % slots_.size();
    return at;
  }

  std::vector<Slot> slots_;
  int shift_;
  int64_t base_;
};

}  // namespace

size_t LogitColumns::bytes() const {
  return bytes_of(text_id) + bytes_of(partner_id) + bytes_of(is_positive);
}

LogitMask::LogitMask(const LogitColumns& columns, std::span<const LogitRow> rows, bool duplicates,
                     Device device) {
  const size_t count = columns.text_id.size();
  AMUR_CHECK(count <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "{} columns",
             count);
  std::optional<ColumnsById> by_text, by_partner;
  if (duplicates) {
    columns_.reserve(2 * count);
    by_text.emplace(columns.text_id, nullptr, columns_);
    by_partner.emplace(columns.partner_id, &columns.is_positive, columns_);
  }

  positive_.reserve(rows.size());
  self_.reserve(rows.size());
  first_range_.reserve(rows.size() + 1);
  first_range_.push_back(0);
  for (const LogitRow& row : rows) {
    positive_.push_back(row.positive);
    self_.push_back(row.self);
    // Most rows share their texts with nobody and keep no range.
    const auto add = [&](ColumnsById::Range found) {
      for (int64_t k = found.first; k < found.last; ++k) {
        const int32_t c = columns_[static_cast<size_t>(k)];
        if (c == row.positive || c == row.self) continue;
        ranges_.push_back(found.first);
        ranges_.push_back(found.last);
        return;
      }
    };
    if (duplicates && row.positive >= 0) {
      const uint64_t right = columns.text_id[static_cast<size_t>(row.positive)];
      add(by_text->range(right));
      add(by_partner->range(row.text_id));
      if (row.self >= 0 && row.text_id != right) add(by_text->range(row.text_id));
      for (uint64_t id : row.other_positives) add(by_text->range(id));
    }
    first_range_.push_back(std::ssize(ranges_) / 2);
  }

  const auto view = [&]<class T>(const std::vector<T>& v, Shape shape) -> ConstTensorView {
    const ConstTensorView here(v.data(), shape, dtype_of<T>);
    if (device == Device::cpu()) return here;
    there_.emplace_back(shape, dtype_of<T>, device);
    copy(there_.back(), here);
    return there_.back();
  };
  const auto n = static_cast<int64_t>(rows.size());
  exclusions_ = {.positive = view(positive_, {n}),
                 .self = view(self_, {n}),
                 .first_range = view(first_range_, {n + 1}),
                 .ranges = view(ranges_, {std::ssize(ranges_) / 2, 2}),
                 .columns = view(columns_, {std::ssize(columns_)})};
}

size_t LogitMask::bytes() const {
  size_t bytes = bytes_of(columns_) + bytes_of(positive_) + bytes_of(self_) +
                 bytes_of(first_range_) + bytes_of(ranges_);
  for (const Tensor& t : there_) bytes += t.bytes();
  return bytes;
}

}  // namespace amur
