// Which entries of the logit matrix take no part in the loss, found by hashing ids: time and memory
// linear in rows and columns, and no work on the device for the rows that have nothing to mask.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/contrastive.h"
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
  // The tensors lie on `device`.
  LogitMask(const LogitColumns& columns, std::span<const LogitRow> rows, bool duplicates,
            Device device = Device::cpu());
  LogitMask(const LogitMask&) = delete;
  LogitMask& operator=(const LogitMask&) = delete;

  // Good as long as this is.
  const LogitExclusions& exclusions() const { return exclusions_; }
  size_t bytes() const;

 private:
  std::vector<int32_t>
      columns_;  // those of one text id together, ascending; then positives, by partner
  std::vector<int64_t> positive_, self_, first_range_, ranges_;
  std::vector<Tensor> there_;  // copies of these on a GPU
  LogitExclusions exclusions_;
};

}  // namespace amur
