// Tasks that several threads do together.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/isa.h"
#include "cpu/threads/pool.h"

namespace noprop {

// Runs run(0) .. run(count - 1), each by a team of `size` threads that share a workspace of
// `bytes`; a team of one has its worker's own. Teams of more need count * size <= host.threads(),
// since their members wait for each other. False: no memory; nothing ran.
bool run_teams(int64_t count, int32_t size, int64_t bytes, Host& host,
               const std::function<void(int64_t task, const Team&, const Worker&)>& run);

}  // namespace noprop
