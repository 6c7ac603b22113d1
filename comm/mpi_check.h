// Status codes of MPI as errors, without mpi.h.
#pragma once

namespace amur {

// Throws CommError "MPI_Iallreduce: <text of the code>" unless `code` is MPI_SUCCESS.
void check_mpi(int code, const char* call);

}  // namespace amur
