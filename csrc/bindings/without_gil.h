// A call of the kernels without Python's lock (GIL): signal handlers run in its middle, and the
// interpreter may end meanwhile.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <tuple>

#include "tensors.h"

namespace noprop {

inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// On the main thread, the only one that can, lets Python run its signal handlers, so that Ctrl-C
// works; the exception is raised after the threads have stopped. On another thread, stops the call
// if the interpreter is ending.
inline int poll_signals(void*) {
  if (gettid() != getpid()) return interpreter_ends();
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals();
}

// When the interpreter ends, Python before 3.14 unwinds the stack of another thread that takes the
// GIL, and C++ then calls std::terminate. Such a thread sleeps until the process ends.
[[gnu::noinline]] inline void take_gil(PyThreadState* state) {
  struct Sleep {
    bool unwound = true;
    ~Sleep() {
      while (unwound) pause();
    }
  } sleep;
  PyEval_RestoreThread(state);
  sleep.unwound = false;
}

using Result = std::tuple<int, int64_t, int64_t>;

inline NopropOpenMP openmp = {};  // PyTorch's, or none

inline void use_openmp(uintptr_t parallel, uintptr_t num_threads, uintptr_t pause) {
  openmp = {
      .parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel),
      .num_threads = reinterpret_cast<decltype(openmp.num_threads)>(num_threads),
      .pause = reinterpret_cast<decltype(openmp.pause)>(pause),
  };
}

// Calls run() without the GIL. A stop raises the signal handler's exception.
template <class Run>
Result without_gil(int32_t threads, Run run) {
  const NopropHost host = {threads, poll_signals, nullptr, openmp.parallel ? &openmp : nullptr};
  NopropResult result;
  PyThreadState* const state = PyEval_SaveThread();
  try {
    result = run(&host);
  } catch (...) {
    take_gil(state);
    throw;
  }
  take_gil(state);
  if (PyErr_Occurred()) throw py::error_already_set();
  return {static_cast<int>(result.status), result.where, result.value};
}

// The same after the check for shared memory.
template <class Run>
Result without_gil(Tensors& tensors, int32_t threads, Run run) {
  tensors.check_apart();
  return without_gil(threads, run);
}

}  // namespace noprop
