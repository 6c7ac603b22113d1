// All ranks of the test as one data-parallel group.
#pragma once

#include <mpi.h>

#include <memory>

#include "comm/mpi_communicator.h"
#include "comm/trace.h"

namespace amur {

inline Communicator& dp_group() {
  static Trace trace;
  static const MPI_Comm world = MPI_COMM_WORLD;
  // Lives until after MPI_Finalize, which frees what is left.
  static Communicator* const group = MpiCommunicator::split(&world, 0, "dp", &trace).release();
  return *group;
}

}  // namespace amur
