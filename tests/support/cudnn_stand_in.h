// What cudnn_stand_in.cpp can be told: symbols of the library, for dlsym.
#pragma once

#include <functional>

enum class CudnnStandInMood : int {
  honest,
  refuses,  // every run of a plan
  errs,     // its results are too large by a tenth
};

extern "C" {
void cudnn_stand_in_mood(CudnnStandInMood mood);
// Who is given the work of a run. Without: it is done by the caller, at once.
void cudnn_stand_in_queue(void (*enqueue)(const char* name, std::function<void()> work));
}
