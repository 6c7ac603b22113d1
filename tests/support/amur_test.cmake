# amur_test(NAME SOURCES... [LIBRARIES ...] [RANKS 1 2 ...] [TIMEOUT seconds] [LABELS ...])
#   without RANKS: a plain GoogleTest program; with RANKS: one ctest entry a rank count, under mpirun.
#   Labels with a meaning to launch/test.sh: slow (not under sanitizers), soak (only with --long).
#   For ThreadSanitizer only programs with the label threads are built: they start some, beside the
#   watchdog that all programs under MPI have.
set(AMUR_TEST_ENVIRONMENT
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
  OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_pml=ob1
  OMPI_MCA_btl=self,vader,tcp OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1)
set(AMUR_TEST_TIME_FACTOR 1)
if(AMUR_SANITIZE)
  set(AMUR_TEST_TIME_FACTOR 8)
  list(APPEND AMUR_TEST_ENVIRONMENT
    "LSAN_OPTIONS=suppressions=${CMAKE_CURRENT_LIST_DIR}/lsan.supp:print_suppressions=0"
    "TSAN_OPTIONS=suppressions=${CMAKE_CURRENT_LIST_DIR}/tsan.supp:ignore_noninstrumented_modules=1")
endif()

function(amur_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;LIBRARIES;RANKS;LABELS" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 60)
  endif()
  math(EXPR T_TIMEOUT "${T_TIMEOUT} * ${AMUR_TEST_TIME_FACTOR}")
  add_executable(${name} ${T_SOURCES})
  set(registered TRUE)
  if(AMUR_SANITIZE STREQUAL "thread" AND NOT "threads" IN_LIST T_LABELS)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
    set(registered FALSE)
  endif()
  # A test is compiled more often than it is run: what it calls is optimised, it is less so. Under
  # ThreadSanitizer it would lose in running what it gains in compiling.
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(${name} PRIVATE -O1)
  elseif(NOT AMUR_SANITIZE STREQUAL "thread")
    target_compile_options(${name} PRIVATE -O0)
  endif()
  if(AMUR_SANITIZE)
    # One count is enough, more run no other code: three ranks share unevenly, two threads race.
    set(order 3 2)
    if(AMUR_SANITIZE STREQUAL "thread")
      set(order 2 3)
    endif()
    foreach(ranks ${order})
      if(ranks IN_LIST T_RANKS)
        set(T_RANKS ${ranks})
        break()
      endif()
    endforeach()
  endif()
  if(T_RANKS)
    target_link_libraries(${name} PRIVATE amur_test_support ${T_LIBRARIES})
    if(NOT registered)
      return()
    endif()
    foreach(ranks ${T_RANKS})
      add_test(NAME ${name}.${ranks} COMMAND ${MPIEXEC_EXECUTABLE} -n ${ranks} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}.${ranks} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "mpi;${T_LABELS}"
        ENVIRONMENT "${AMUR_TEST_ENVIRONMENT};AMUR_TEST_SECONDS=${T_TIMEOUT}" PROCESSORS 2)
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE ${T_LIBRARIES} GTest::gtest GTest::gtest_main)
    if(NOT registered)
      return()
    endif()
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "unit;${T_LABELS}"
      ENVIRONMENT "${AMUR_TEST_ENVIRONMENT}")
  endif()
endfunction()
