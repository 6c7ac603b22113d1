// What the stand-in of NCCL has seen (nccl_stand_in.cpp), on this rank.
#pragma once

struct NcclStandInCounts {
  int ids = 0;         // made
  int groups = 0;      // communicators made
  int calls = 0;       // ncclGroupEnd with something in it
  int operations = 0;  // in these
  int destroyed = 0, aborted = 0;
  int events = 0;  // that there are
};

extern "C" {
// Symbols of the library, for dlsym.
NcclStandInCounts nccl_stand_in_counts();
// Returns when a stream has done what was put into it.
void nccl_stand_in_drain(void* stream);
}
