// Choice of the instruction set at run time.
//
// The vectorised kernels of an operation are reached through a table of function pointers, e.g.
// NormKernels<float>. Each copy of the sources defines `table_of` for its own instruction set.
#pragma once

#include <cstdint>

namespace amur::cpu {

enum class Isa : uint8_t { baseline, avx2, avx512 };

// The widest that this processor has and this build holds, or the limit where that is lower.
Isa instruction_set();
// Use nothing wider from now on: for tests, and to get the bits of a lesser machine.
void limit_instruction_set(Isa most);
const char* name_of(Isa isa);

template <class Table, Isa isa>
const Table& table_of();

template <class Table>
const Table& table_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return table_of<Table, Isa::avx512>();
    case Isa::avx2:
      return table_of<Table, Isa::avx2>();
    case Isa::baseline:
      break;
  }
#else
  (void)isa;
#endif
  return table_of<Table, Isa::baseline>();
}
template <class Table>
const Table& kernels() {
  return table_for<Table>(instruction_set());
}

}  // namespace amur::cpu

// In the sources compiled per instruction set: the table of this one.
#define AMUR_KERNEL_TABLE(Table, ...)             \
  template <>                                     \
  const Table& table_of<Table, Isa::AMUR_ISA>() { \
    static constexpr Table table = {__VA_ARGS__}; \
    return table;                                 \
  }
