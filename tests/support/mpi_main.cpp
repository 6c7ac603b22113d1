// GoogleTest under mpirun: only rank 0 reports success, every rank its failures, and a failure on
// any rank fails every rank. Collectives run in check mode and under the watchdog, so that a test
// in which ranks part ways ends with the rank and the call.
#include <gtest/gtest.h>

#include <cstdlib>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "kernels/gemm.h"
#include "tests/support/mpi_runtime.h"
#include "tests/support/sanitized.h"

namespace amur {
namespace {

Runtime* current_runtime = nullptr;

// A test without advance ends shortly before ctest would end it, so that the culprit is named.
double progress_seconds() {
  const char* limit = std::getenv("AMUR_TEST_SECONDS");
  return limit ? std::atof(limit) - 5 : 600;
}

// Sanitizers slow everything down.
constexpr double kSlowdown = test::kSanitized ? 8 : 1;

class RankListener : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo& test) override {
    test_runtime().set_phase(std::string(test.test_suite_name()) + "." + test.name());
  }
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed() || test_runtime().rank() == 0) return;
    fmt::print(stderr, "rank {}: {}:{}: {}\n", test_runtime().rank(),
               result.file_name() ? result.file_name() : "", result.line_number(),
               result.message());
  }
};

}  // namespace

Runtime& test_runtime() {
  return *current_runtime;
}

}  // namespace amur

int main(int argc, char** argv) {
  amur::start_again_for_blas(argv);
  return amur::run_main(argc, argv, [&](amur::Runtime& runtime) {
    amur::current_runtime = &runtime;
    ::testing::InitGoogleTest(&argc, argv);
    runtime.start_watchdog({.threads = 1,
                            .liveness_seconds = 30 * amur::kSlowdown,
                            .progress_seconds = amur::progress_seconds(),
                            .check_collectives = true});
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    if (runtime.rank() != 0) delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new amur::RankListener);
    const int failed = RUN_ALL_TESTS();
    runtime.set_phase("after the tests");
    amur::ProcessGrid grid(runtime, {runtime.size(), 1});
    return static_cast<int>(grid.world().max(int64_t{failed}));
  });
}
