// Facts about this process from the operating system.
#pragma once

#include <cstddef>

namespace amur {

// Resident memory in bytes, now and at its highest; 0 where the system does not tell.
size_t resident_bytes();
size_t peak_resident_bytes();
// Memory that this machine, or the container with a limit, can still give; 0 where the system does
// not tell.
size_t available_bytes();

// Seconds that cores have spent on all threads of this process; 0 where the system does not tell.
double cpu_seconds();

}  // namespace amur
