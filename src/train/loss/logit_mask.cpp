#include "src/train/loss/logit_mask.h"

#include <algorithm>
#include <limits>
#include <numeric>
namespace amur {
namespace {

template <class T>
size_t bytes_of(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

// Sorts by (id, column).
void sort_by_id(std::span<int32_t> columns, const std::vector<uint64_t>& ids) {
  std::sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
    const uint64_t x = ids[static_cast<size_t>(a)], y = ids[static_cast<size_t>(b)];
    return x != y ? x < y : a < b;
  });
}

// The part of sorted columns that has this id.
std::span<const int32_t> columns_with(std::span<const int32_t> sorted,
                                      const std::vector<uint64_t>& ids, uint64_t id) {
  const auto at = [&](int32_t column) { return ids[static_cast<size_t>(column)]; };
  const auto first = std::lower_bound(sorted.begin(), sorted.end(), id,
                                      [&](int32_t c, uint64_t v) { return at(c) < v; });
  const auto last =
      std::upper_bound(first, sorted.end(), id, [&](uint64_t v, int32_t c) { return v < at(c); });
  return {first, last};
}

}  // namespace

size_t LogitColumns::bytes() const {
  return bytes_of(text_id) + bytes_of(partner_id) + bytes_of(is_positive);
}

LogitMask::LogitMask(const LogitColumns& columns, std::span<const LogitRow> rows, bool duplicates,
                     Device device) {
  const size_t count = columns.text_id.size();
  AMUR_CHECK(count <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "{} columns",
             count);
  if (duplicates) {
    columns_.resize(count);
    std::iota(columns_.begin(), columns_.end(), 0);
    for (size_t j = 0; j < count; ++j)
      if (columns.is_positive[j]) columns_.push_back(static_cast<int32_t>(j));
  }
  const std::span<int32_t> all = columns_;
  const std::span<int32_t> by_text = all.first(duplicates ? count : 0);
  const std::span<int32_t> by_partner = all.subspan(by_text.size());
  sort_by_id(by_text, columns.text_id);
  sort_by_id(by_partner, columns.partner_id);

  positive_.reserve(rows.size());
  self_.reserve(rows.size());
  first_range_.reserve(rows.size() + 1);
  first_range_.push_back(0);
  for (const LogitRow& row : rows) {
    positive_.push_back(row.positive);
    self_.push_back(row.self);
    // Most rows share their texts with nobody and keep no range.
    const auto add = [&](std::span<const int32_t> found) {
      const bool masks = std::any_of(found.begin(), found.end(),
                                     [&](int32_t c) { return c != row.positive && c != row.self; });
      if (!masks) return;
      const int64_t first = found.data() - columns_.data();
      ranges_.push_back(first);
      ranges_.push_back(first + std::ssize(found));
    };
    if (duplicates && row.positive >= 0) {
      const uint64_t right = columns.text_id[static_cast<size_t>(row.positive)];
      add(columns_with(by_text, columns.text_id, right));
      add(columns_with(by_partner, columns.partner_id, row.text_id));
      if (row.self >= 0 && row.text_id != right)
        add(columns_with(by_text, columns.text_id, row.text_id));
      for (uint64_t id : row.other_positives) add(columns_with(by_text, columns.text_id, id));
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
