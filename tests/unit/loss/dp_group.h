// All ranks of the test as one data-parallel group.
#pragma once

#include <mpi.h>

#include <memory>

#include "comm/mpi_communicator.h"
#include "tests/support/mpi_runtime.h"

namespace amur {

// Its calls are the run's: in check mode, and seen by the watchdog.
inline Communicator& dp_group() {
  static const MPI_Comm world = MPI_COMM_WORLD;
  // Lives until after MPI_Finalize, which frees what is left.
  static Communicator* const group =
      MpiCommunicator::split(&world, 0, "dp", &test_runtime().trace()).release();
  return *group;
}

}  // namespace amur
