#include "src/train/loss/logit_mask.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/contrastive.h"

namespace amur {
namespace {

template <class T>
size_t bytes_of(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

void sort_by_id(std::vector<int32_t>& order, const std::vector<uint64_t>& ids) {
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const uint64_t x = ids[static_cast<size_t>(a)], y = ids[static_cast<size_t>(b)];
    return x != y ? x < y : a < b;
  });
}

std::pair<const int32_t*, const int32_t*> columns_with(const std::vector<int32_t>& order,
                                                       const std::vector<uint64_t>& ids,
                                                       uint64_t id) {
  const auto at = [&](int32_t column) { return ids[static_cast<size_t>(column)]; };
  const int32_t* end = order.data() + order.size();
  const int32_t* first =
      std::lower_bound(order.data(), end, id, [&](int32_t c, uint64_t v) { return at(c) < v; });
  const int32_t* last =
      std::upper_bound(first, end, id, [&](uint64_t v, int32_t c) { return v < at(c); });
  return {first, last};
}

}  // namespace

size_t LogitColumns::bytes() const {
  return bytes_of(text_id) + bytes_of(partner_id) + bytes_of(is_positive);
}

LogitMask::LogitMask(const LogitColumns& columns, std::span<const LogitRow> rows, bool duplicates) {
  const size_t count = columns.text_id.size();
  AMUR_CHECK(count <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "{} columns",
             count);
  if (duplicates) {
    by_text_.resize(count);
    for (size_t j = 0; j < count; ++j) by_text_[j] = static_cast<int32_t>(j);
    for (size_t j = 0; j < count; ++j)
      if (columns.is_positive[j]) by_partner_.push_back(static_cast<int32_t>(j));
    sort_by_id(by_text_, columns.text_id);
    sort_by_id(by_partner_, columns.partner_id);
  }
  exempt_.reserve(rows.size());
  first_range_.reserve(rows.size() + 1);
  first_range_.push_back(0);
  for (const LogitRow& row : rows) {
    exempt_.emplace_back(row.positive, row.self);
    // Most rows share their texts with nobody and keep no range.
    const auto add = [&](std::pair<const int32_t*, const int32_t*> found) {
      const bool masks = std::any_of(found.first, found.second,
                                     [&](int32_t c) { return c != row.positive && c != row.self; });
      if (masks) ranges_.push_back({found.first, found.second});
    };
    if (duplicates && row.positive >= 0) {
      const uint64_t right = columns.text_id[static_cast<size_t>(row.positive)];
      add(columns_with(by_text_, columns.text_id, right));
      add(columns_with(by_partner_, columns.partner_id, row.text_id));
      if (row.self >= 0 && row.text_id != right)
        add(columns_with(by_text_, columns.text_id, row.text_id));
      for (uint64_t id : row.other_positives) add(columns_with(by_text_, columns.text_id, id));
    }
    first_range_.push_back(static_cast<int64_t>(ranges_.size()));
  }
}

template <class T>
int64_t LogitMask::apply_to(T* tile, int64_t m, int64_t n, int64_t first_row,
                            int64_t first_column) const {
  int64_t masked = 0;
  for (int64_t i = 0; i < m; ++i) {
    const auto row = static_cast<size_t>(first_row + i);
    const auto [positive, self] = exempt_[row];
    T* z = tile + i * n;
    if (self >= first_column && self < first_column + n) z[self - first_column] = kMaskedLogit;
    for (int64_t r = first_range_[row]; r < first_range_[row + 1]; ++r) {
      const Range& range = ranges_[static_cast<size_t>(r)];
      for (const int32_t* c = std::lower_bound(range.first, range.last, first_column);
           c != range.last && *c < first_column + n; ++c) {
        T& entry = z[*c - first_column];
        // Ranges may overlap: count an entry once.
        if (*c == positive || entry == static_cast<T>(kMaskedLogit)) continue;
        entry = kMaskedLogit;
        ++masked;
      }
    }
  }
  return masked;
}

int64_t LogitMask::apply(TensorView tile, int64_t first_row, int64_t first_column) const {
  return dispatch_f32_f64(tile.dtype(), "LogitMask::apply", [&]<class T>() {
    return apply_to(tile.as<T>(), tile.rows(), tile.columns(), first_row, first_column);
  });
}

size_t LogitMask::bytes() const {
  return bytes_of(by_text_) + bytes_of(by_partner_) + bytes_of(first_range_) + bytes_of(ranges_) +
         bytes_of(exempt_);
}

}  // namespace amur
