#include "cpu/threads/processors.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace noprop {
namespace {

constexpr double kNoQuota = 1e9;

// processors' worth of time that a folder grants: v2 "quota period" or "max period"; v1 two files,
// -1 for no quota
double quota_of(const std::string& folder) {
  double quota = -1, period = -1;
  if (std::ifstream file(folder + "/cpu.max"); file) {
    std::string text;
    if (file >> text >> period && text != "max") std::istringstream(text) >> quota;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

// A group is bound by its own quota and by those of all above it. A path that is not under `mount`
// is that of another namespace; what is mounted is then this process's own group.
double least_quota(const std::string& mount, std::string group) {
  double least = quota_of(mount);
  for (; group.size() > 1; group.resize(group.rfind('/')))
    least = std::min(least, quota_of(mount + group));
  return least;
}

bool has_cpu(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');)
    if (name == "cpu") return true;
  return false;
}

// lines of /proc/self/cgroup: "0::/group" for v2, "number:controllers:/group" for v1
double quota(const std::string& root) {
  const std::string mounts = root + "/sys/fs/cgroup";
  std::ifstream file(root + "/proc/self/cgroup");
  double least = kNoQuota;
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      for (const char* mount : {"", "/unified"})
        least = std::min(least, least_quota(mounts + mount, group));
    } else if (has_cpu(controllers)) {
      for (const std::string& mount : {"/" + controllers, std::string("/cpu")})
        least = std::min(least, least_quota(mounts + mount, group));
    }
  }
  return least;
}

}  // namespace

int32_t available_processors(const std::string& root) {
  double count = std::thread::hardware_concurrency();
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  count = std::min(count, std::floor(quota(root) + 0.5));
#endif
  return std::max(static_cast<int32_t>(count), 1);
}

}  // namespace noprop
