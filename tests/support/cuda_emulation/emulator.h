// Runs CUDA kernels on the CPU, to test their logic without a GPU: a block at a time, its threads
// in turns, each on a stack of its own until it waits for others. docs/gpu.md, "Tests", says what
// that can show and what it cannot. For x86-64.
//
// What a kernel may not do is found where it does it and told with kernel, block and thread:
//  - touching memory that is no allocation of its device, also by one element behind its end;
//  - waiting at different barriers or warp instructions, or for a thread that has ended;
//  - more threads, blocks or shared memory than a device grants or the kernel was allowed;
//  - results that depend on the order of threads and blocks: with Orders::both every kernel runs
//    twice, in both directions, and has to leave the same bits everywhere.
// Memory is poisoned, so that what was never written is NaN. Like CUDA's own, the first error of a
// device stays: every later call returns it.
#pragma once

#include <cstddef>
#include <functional>
#include <source_location>
#include <string>

namespace amur::emulation {

using Where = std::source_location;

// What every device of compute capability 8.0 or newer grants a block: shared memory in bytes,
// unasked and at most, and threads.
inline constexpr size_t kUnaskedSharedMemory = 48 << 10, kMostSharedMemory = 99 << 10;
inline constexpr size_t kMostThreads = 1024;

struct Extent {
  unsigned x = 1, y = 1, z = 1;
  size_t count() const { return size_t{x} * y * z; }
};
struct Launch {
  const char* kernel;
  Extent grid, block;
  size_t shared = 0;  // bytes
};

// --- for threads of a kernel: threads.cpp

// All threads of the block, at the same place of the source.
void barrier(Where where);
// All 32 lanes of the warp, at the same place: the last one to come calls run(lanes) for all of
// them.
struct Lane {
  const void* in;
  void* out;
};
using WarpInstruction = void(const Lane (&lanes)[32]);
void with_warp(Lane mine, WarpInstruction* run, Where where);
// The same memory for all threads of the block; `tag` is the variable.
void* static_shared(const void* tag, size_t bytes);
void* dynamic_shared();
// Into shared memory, or zeros: made at once or, where threads go forward, when it is waited for.
void copy_async(void* to, const void* from, size_t bytes, bool exists);
void wait_for_copies();
// Ends the kernel, or what else runs on the device.
[[noreturn]] void fail(const std::string& what);

// --- running them: threads.cpp

enum class Direction { forward, backward };  // of threads and blocks
// Both say why it failed; nothing where it did not.
std::string run_on_device(const char* name, const std::function<void()>& operation);
std::string run_kernel(const Launch& launch, Direction direction,
                       const std::function<void()>& thread);

// --- the device: runtime.cpp

enum class Orders { forward, backward, both };
// AMUR_EMULATED_ORDERS in the environment: forward, backward or both, which is what it is unasked.
void set_orders(Orders orders);
// Queued on the current device: operations begin when the host waits, or many are queued. Whoever
// forgets to wait, or gives memory away too early, sees it.
void enqueue(const char* name, std::function<void()> operation);
// A kernel; `function` is what cudaFuncSetAttribute knows it by, or null.
void enqueue(const Launch& launch, const void* function, std::function<void()> thread);
// What went wrong first, and forgets it; empty where nothing did.
std::string take_failure();

}  // namespace amur::emulation
