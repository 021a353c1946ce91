// A call of the C interface has its turn at the pool, its memory between tasks, and its caller's
// poll.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/threads/workspace.h"
#include "noprop.h"

namespace noprop {

class Apart;
class Pool;

// Waits until no other thread's call runs. A call that a signal handler makes in the middle of
// another one of its thread does not wait: it runs first, on this thread alone, in memory of its
// own, and is refused where one of the two writes parameters of the other.
class Host {
 public:
  Host(const NopropHost& caller, const NopropSlices* slices, bool writes);
  Host(const Host&) = delete;
  ~Host();

  // NOPROP_OK, or the reason why nothing may run, or why the tasks did not end
  NopropStatus status() const { return status_; }
  NopropResult result(bool ran) const;
  int32_t threads() const { return threads_; }
  // memory for an input's packed rows, kept by the thread from call to call
  Workspace& packed(int32_t input);

  // Asked by tasks between steps. On the calling thread, worker 0, it runs the caller's poll,
  // several times a second; the others see to it that no two workers share a processor.
  bool go_on(int32_t worker);
  bool stopped() const;

 private:
  bool conflicts() const;
  bool take_turn();  // false: not yet
  void end_turn();
  bool forked() const;  // since then

  const NopropHost& caller_;
  const NopropSlices* const slices_;
  const bool writes_;
  Host* const outer_;  // the call of this thread that waits for this one
  const int64_t depth_;
  const uint64_t float_mode_;  // the caller's
  NopropStatus status_ = NOPROP_OK;
  int32_t threads_ = 1;
  double next_poll_ = 0;
  int stopped_ = 0;
  Pool* pool_ = nullptr;  // where it has its turn
  Apart* apart_ = nullptr;
  std::vector<Workspace> packed_;
  friend class Pool;
};

// A host and who asks it, as tasks poll between steps.
struct Poll {
  Host* host;
  int32_t worker;

  static bool go_on(void* data) {
    const auto* poll = static_cast<Poll*>(data);
    return poll->host->go_on(poll->worker);
  }
};

// Thrown by go_on in a child process that a signal handler forked: it has none of the threads that
// its copy of the call needs. The pool catches it.
struct Forked {};

}  // namespace noprop
