// Functions that C++ and CUDA share.
#pragma once

#if defined(__CUDACC__)
#define AMUR_HOST_DEVICE __host__ __device__
#else
#define AMUR_HOST_DEVICE
#endif
