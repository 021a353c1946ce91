// Who works on a layer: all of it is one thread's, or the threads of a team divide it, or a thread
// has taken one tile of it. The geometry of the work is apart from it, in panels.h.
#pragma once

#include "cpu/isa.h"

namespace noprop {
namespace {

struct Range {
  int64_t first, last;
};

// One thread's share of a stage. By default it is the whole.
struct Share {
  Team team = {};       // this member's part
  Range tile = {0, 0};  // these features of the layer instead, unless it is empty
};

inline void wait_for_team(const Share& share) {
  if (share.team.size > 1) share.team.wait(share.team.barrier);
}

// This member's part of `count` things, in whole units. No part changes a value: what one member
// sums, it sums as one alone would.
inline Range own_part(const Share& share, int64_t count, int64_t unit) {
  const int64_t units = (count + unit - 1) / unit, rank = share.team.rank, size = share.team.size;
  const int64_t first = units * rank / size * unit, last = units * (rank + 1) / size * unit;
  return {first < count ? first : count, last < count ? last : count};
}

}  // namespace
}  // namespace noprop
