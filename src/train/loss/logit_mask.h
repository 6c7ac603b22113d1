// Which entries of the logit matrix take no part in the loss, found by sorting ids: memory linear
// in rows and columns, and no work at all for the rows that have nothing to mask.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/core/tensor.h"

namespace amur {

// What is known of every column of the global matrix, in column order.
struct LogitColumns {
  std::vector<uint64_t> text_id;
  std::vector<uint64_t> partner_id;  // text id of the row whose positive the column is
  std::vector<uint8_t> is_positive;  // whether it is anybody's positive

  size_t bytes() const;
};

// What is known of a row, local to this rank.
struct LogitRow {
  int64_t positive = -1;  // column; -1: the row is no anchor and has nothing to mask
  int64_t self = -1;      // column of the row's own text, never a candidate; -1: not among them
  uint64_t text_id = 0;
  std::span<const uint64_t> other_positives;  // ids of further right texts
};

class LogitMask {
 public:
  // With `duplicates`, entry (i, j), j other than the positive of i, is masked if column j has the
  // text of that positive, is the positive of a row with the text of i, or is among
  // other_positives; where rows stand among the columns (self >= 0), also if it has the text of i.
  // Own entries are excluded always.
  LogitMask(const LogitColumns& columns, std::span<const LogitRow> rows, bool duplicates);

  // Sets the masked and excluded entries of a tile at (first_row, first_column) to kMaskedLogit.
  // Returns how many of them are masked; own entries are not counted.
  int64_t apply(TensorView tile, int64_t first_row, int64_t first_column) const;
  size_t bytes() const;

 private:
  // Columns that order_[first..last-1] name, in ascending order.
  struct Range {
    const int32_t* first;
    const int32_t* last;
  };
  template <class T>
  int64_t apply_to(T* tile, int64_t m, int64_t n, int64_t first_row, int64_t first_column) const;

  std::vector<int32_t> by_text_, by_partner_;  // columns sorted by (id, column)
  std::vector<int64_t> first_range_;           // [rows + 1]
  std::vector<Range> ranges_;
  std::vector<std::pair<int64_t, int64_t>> exempt_;  // positive and own column of each row
};

}  // namespace amur
