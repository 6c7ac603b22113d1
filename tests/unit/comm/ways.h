// How tensors travel in the tests of collectives: from host memory by MPI; from a pretended GPU by
// the NCCL back end over its stand-in (tests/support/nccl_stand_in.cpp); and, where there is a GPU,
// from there by MPI and by NCCL.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "comm/process_grid.h"

namespace amur::test {

struct Way {
  std::string name;
  Device device;
  CommBackend backend = CommBackend::mpi;
  bool pretended = false;
};

// A way that cannot be gone does not exist. Ranks that share a GPU can have NCCL only where they
// pretend to be on machines of their own (launch/gpu-check.sh).
std::vector<Way> ways();
// What a case is called.
std::string name_of_way(const ::testing::TestParamInfo<Way>& info);

// Over all ranks of this test program.
std::unique_ptr<ProcessGrid> open_grid(const Way& way, GridShape shape, double limit_seconds = 60);

// A function of the stand-in (tests/support/nccl_stand_in.h); null where that is not loaded.
void* of_stand_in(const char* name);

}  // namespace amur::test
