#pragma once

#include <cstdint>
#include <string>

namespace noprop {

// Processors of the affinity mask and of the quotas of this process's control groups, at least 1;
// /proc and /sys are those in the folder `root`.
int32_t available_processors(const std::string& root = "");

}  // namespace noprop
