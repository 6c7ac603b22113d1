#include "comm/mpi_check.h"

#include <mpi.h>

#include "src/core/error.h"

namespace amur {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) [[likely]]
    return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommError("{}: {}", call, text);
}

}  // namespace amur
