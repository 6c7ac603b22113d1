#include "kernels/check.h"

namespace amur {

void require_device(const char* op, std::initializer_list<ConstTensorView> tensors) {
  const Device device = tensors.begin()->device();
  for (const ConstTensorView& t : tensors)
    AMUR_CHECK(!t.defined() || t.device() == device, "{}: tensors on {} and {}", op, device.text(),
               t.device().text());
}

void require_shape(const char* op, const char* name, ConstTensorView tensor, const Shape& shape) {
  AMUR_CHECK(tensor.defined(), "{}: {} is undefined", op, name);
  AMUR_CHECK(tensor.shape() == shape, "{}: {} is {}, wanted {}", op, name, tensor.shape().text(),
             shape.text());
}

void require_dtype(const char* op, const char* name, ConstTensorView tensor, DType dtype) {
  AMUR_CHECK(tensor.defined(), "{}: {} is undefined", op, name);
  AMUR_CHECK(tensor.dtype() == dtype, "{}: {} is {}, wanted {}", op, name, name_of(tensor.dtype()),
             name_of(dtype));
}

void require_matrix(const char* op, const char* name, ConstTensorView tensor, int64_t rows,
                    int64_t columns, DType dtype) {
  require_dtype(op, name, tensor, dtype);
  AMUR_CHECK(tensor.rows() == rows && tensor.columns() == columns,
             "{}: {} is {}, wanted {} rows of {}", op, name, tensor.shape().text(), rows, columns);
}

void require_packed(const char* op, const PackedSequences& packed, int64_t tokens) {
  require_dtype(op, "cu_seqlens", packed.cu_seqlens, DType::i32);
  AMUR_CHECK(packed.cu_seqlens.rows() >= 1, "{}: cu_seqlens is empty", op);
  if (on_gpu(packed.cu_seqlens)) return;
  const int32_t* cu = packed.cu_seqlens.as<int32_t>();
  const int64_t sequences = packed.sequences();
  AMUR_CHECK(cu[0] == 0 && cu[sequences] == tokens,
             "{}: cu_seqlens runs from {} to {} of {} tokens", op, cu[0], cu[sequences], tokens);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = int64_t{cu[s + 1]} - cu[s];
    AMUR_CHECK(length >= 1 && length <= packed.longest,
               "{}: sequence {} has {} tokens, the longest should have {}", op, s, length,
               packed.longest);
  }
}

void require_dropout(const char* op, const PackedSequences& packed, const DropoutSite& site) {
  AMUR_CHECK(site.probability >= 0 && site.probability < 1, "{}: dropout probability {}", op,
             site.probability);
  if (site.probability == 0) return;
  require_dtype(op, "dropout_keys", packed.dropout_keys, DType::i64);
  AMUR_CHECK(packed.dropout_keys.rows() == packed.sequences(), "{}: {} dropout keys, {} sequences",
             op, packed.dropout_keys.rows(), packed.sequences());
}

}  // namespace amur
