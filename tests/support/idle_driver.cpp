// Passes for NVIDIA's driver as far as cuDNN asks one while it compiles a plan for a GPU that is
// not there: device code is loaded nowhere and there is no device.
namespace {
constexpr int kSuccess = 0, kNotInitialised = 3;  // CUresult
int nothing = 0;
}  // namespace

extern "C" {
#define AMUR_LOADS(name)    \
  int name(void** loaded);  \
  int name(void** loaded) { \
    *loaded = &nothing;     \
    return kSuccess;        \
  }
AMUR_LOADS(cuLibraryLoadData)
AMUR_LOADS(cuLibraryGetKernel)
AMUR_LOADS(cuLibraryGetModule)
AMUR_LOADS(cuKernelGetFunction)
AMUR_LOADS(cuModuleLoadData)
AMUR_LOADS(cuModuleLoadDataEx)
AMUR_LOADS(cuModuleGetFunction)

#define AMUR_ANSWERS(name, status) \
  int name();                      \
  int name() {                     \
    return status;                 \
  }
AMUR_ANSWERS(cuLibraryUnload, kSuccess)
AMUR_ANSWERS(cuModuleUnload, kSuccess)
AMUR_ANSWERS(cuKernelSetAttribute, kSuccess)
AMUR_ANSWERS(cuFuncSetAttribute, kSuccess)
AMUR_ANSWERS(cuCtxGetCurrent, kNotInitialised)
AMUR_ANSWERS(cuCtxGetLimit, kNotInitialised)
AMUR_ANSWERS(cuCtxPopCurrent, kNotInitialised)
AMUR_ANSWERS(cuCtxPushCurrent, kNotInitialised)
AMUR_ANSWERS(cuDeviceGet, kNotInitialised)
AMUR_ANSWERS(cuDeviceGetCount, kNotInitialised)
AMUR_ANSWERS(cuDriverGetVersion, kNotInitialised)
AMUR_ANSWERS(cuGetErrorName, kNotInitialised)
AMUR_ANSWERS(cuGetErrorString, kNotInitialised)
AMUR_ANSWERS(cuKernelGetAttribute, kNotInitialised)
AMUR_ANSWERS(cuLaunchCooperativeKernel, kNotInitialised)
AMUR_ANSWERS(cuLaunchKernel, kNotInitialised)
AMUR_ANSWERS(cuLaunchKernelEx, kNotInitialised)
AMUR_ANSWERS(cuLibraryLoadFromFile, kNotInitialised)
AMUR_ANSWERS(cuLinkAddData, kNotInitialised)
AMUR_ANSWERS(cuLinkComplete, kNotInitialised)
AMUR_ANSWERS(cuLinkCreate, kNotInitialised)
AMUR_ANSWERS(cuLinkDestroy, kNotInitialised)
AMUR_ANSWERS(cuOccupancyMaxPotentialClusterSize, kNotInitialised)
AMUR_ANSWERS(cuStreamGetCtx, kNotInitialised)
}
