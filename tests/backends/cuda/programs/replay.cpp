// Launches that tests/support/recordings.py wrote, run again: every byte of memory must become
// what it became there. Each storage is an allocation of its own, exact in size, so that
// AddressSanitizer sees its end.
//
// Usage: replay FAULT SEEDS FILE...; a line for each file and seed, of digits: the launch's error,
// or how many bytes are wrong. FAULT chooses one that the test planted in the kernel; 0: none.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/program.h"
#include "noprop_cuda.h"

int planted_fault = 0;

namespace {

using Bytes = std::vector<unsigned char>;

struct Relocation {
  int64_t place, storage, offset;
};

struct Recording {
  noprop::cuda::Program program;
  std::vector<Bytes> before, after;
  std::vector<Relocation> relocations;
};

void take(std::FILE* file, void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, file) == bytes) return;
  std::printf("a recording ends too early\n");
  std::exit(2);
}

Recording load(const char* path) {
  std::FILE* const file = std::fopen(path, "rb");
  if (file == nullptr) {
    std::printf("%s cannot be read\n", path);
    std::exit(2);
  }
  Recording made;
  int64_t counts[3];
  take(file, counts, sizeof(counts));
  if (counts[0] != sizeof(made.program)) {
    std::printf("a program must have %zu bytes\n", sizeof(made.program));
    std::exit(2);
  }
  take(file, &made.program, sizeof(made.program));
  for (int64_t i = 0; i < counts[1]; ++i) {
    int64_t bytes;
    take(file, &bytes, sizeof(bytes));
    for (auto* kept : {&made.before, &made.after}) {
      kept->emplace_back(bytes);
      take(file, kept->back().data(), bytes);
    }
  }
  made.relocations.resize(counts[2]);
  take(file, made.relocations.data(), counts[2] * sizeof(Relocation));
  std::fclose(file);
  return made;
}

struct Free {
  void operator()(unsigned char* p) const { std::free(p); }
};

std::unique_ptr<unsigned char, Free> aligned_copy(const Bytes& bytes) {
  void* at;
  if (posix_memalign(&at, 64, bytes.size()) != 0) std::abort();
  std::memcpy(at, bytes.data(), bytes.size());
  return std::unique_ptr<unsigned char, Free>(static_cast<unsigned char*>(at));
}

void run(const Recording& recording, char seed) {
  const char text[] = {seed, 0};
  setenv("NOPROP_HOST_SEED", text, 1);
  std::vector<std::unique_ptr<unsigned char, Free>> storages;
  for (const Bytes& bytes : recording.before) storages.push_back(aligned_copy(bytes));
  noprop::cuda::Program program = recording.program;
  for (const Relocation& each : recording.relocations) {
    const unsigned char* const address = storages[each.storage].get() + each.offset;
    std::memcpy(reinterpret_cast<unsigned char*>(&program) + each.place, &address, sizeof(address));
  }
  if (noprop_cuda_launch(&program, sizeof(program), 0, nullptr)) {
    std::printf("seed %c: %s\n", seed, noprop_cuda_error());
    return;
  }
  int64_t wrong = 0;
  for (size_t i = 0; i < storages.size(); ++i) {
    const Bytes& after = recording.after[i];
    for (size_t at = 0; at < after.size(); ++at) wrong += storages[i].get()[at] != after[at];
  }
  std::printf("seed %c: %lld wrong\n", seed, static_cast<long long>(wrong));
}

}  // namespace

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (count < 4) return 2;
  planted_fault = std::atoi(arguments[1]);
  for (int i = 3; i < count; ++i) {
    const Recording recording = load(arguments[i]);
    for (const char* seed = arguments[2]; *seed; ++seed) run(recording, *seed);
  }
}
