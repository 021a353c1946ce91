// What is said when a launch fails.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host_state.h"

namespace hc {

namespace {

thread_local char error_text[8192];  // of a launch, which stays on its OS thread

void put_error(size_t at, const char* format, va_list values) {
  if (at < sizeof error_text) vsnprintf(error_text + at, sizeof error_text - at, format, values);
}

bool alike(const Fiber& a, const Fiber& b) {
  if (a.state == State::kDone && b.state == State::kDone) return true;
  return a.state == b.state && same(a.what, b.what) && a.site.line == b.site.line &&
         same(a.site.file, b.site.file) && a.flag == b.flag && a.want == b.want;
}

void describe(const Fiber& fiber) {
  const Site& site = fiber.site;
  if (fiber.state == State::kDone) {
    add_error("returned from the kernel");
  } else if (fiber.state == State::kPoll) {
    add_error("%s at %s:%d (value %u, waits for >= %u)", fiber.what, site.file, site.line,
              *static_cast<const volatile uint32_t*>(fiber.flag), fiber.want);
  } else {
    const Meeting& meeting = meeting_of(fiber, fiber.state);
    add_error("%s at %s:%d (%d of %d arrived)", fiber.what, site.file, site.line, meeting.arrived,
              meeting.size);
  }
}

}  // namespace

const char* last_error() { return error_text; }

void set_error(const char* format, ...) {
  va_list values;
  va_start(values, format);
  put_error(0, format, values);
  va_end(values);
}

void add_error(const char* format, ...) {
  va_list values;
  va_start(values, format);
  put_error(strlen(error_text), format, values);
  va_end(values);
}

bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

void fail(const char* format, ...) {
  const Fiber& fiber = *running();
  set_error("kernel '%s' (seed %llu), block %d thread %u: ", now.name,
            static_cast<unsigned long long>(now.seed), fiber.number / now.threads,
            fiber.thread_index.x);
  va_list values;
  va_start(values, format);
  put_error(strlen(error_text), format, values);
  va_end(values);
  leave();
}

void fail_at(Site site, const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  fail("%s at %s:%d", text, site.file, site.line);
}

void report_deadlock() {
  set_error("DEADLOCK in kernel '%s' (seed %llu): %d threads live, none can run", now.name,
            static_cast<unsigned long long>(now.seed), now.live);
  for (int first = 0; first < now.count;) {
    int next = first + 1;
    while (next < now.count && next % now.threads != 0 &&
           alike(now.fibers[next], now.fibers[first])) {
      ++next;
    }
    const int block = first / now.threads, thread = first % now.threads;
    if (next == first + 1) {
      add_error("\n  block %d thread %d: ", block, thread);
    } else {
      add_error("\n  block %d threads %d-%d: ", block, thread, thread + next - first - 1);
    }
    describe(now.fibers[first]);
    first = next;
  }
  leave();
}

}  // namespace hc
