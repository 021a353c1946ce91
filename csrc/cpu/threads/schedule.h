// How a training call is divided: the steps of a task, the rows that are packed for all slices, and
// the threads of a slice.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/threads/host.h"

namespace noprop {

// How many steps of a slice a task runs, and whether their rows are packed for all slices first. A
// task of as many steps as can be packed gathers rows once and loads a slice's state once in these
// steps.
struct Schedule {
  int64_t steps;
  bool packs;
};

Schedule choose_schedule(const Isa& isa, const NopropPlan& plan, const NopropInput* inputs,
                         int64_t n, int64_t B, int64_t K);

// The steps of a task where a slice has so many to do: all, or a part of them where the threads
// would else have unequal numbers of slices.
int64_t steps_a_task(int64_t n, int64_t steps, int32_t threads);

// The bytes that are packed at once if all inputs are the same for n slices.
int64_t packed_bytes(const Isa& isa, const NopropPlan& plan, int64_t n, int64_t B, int64_t K);

// whether slices read the same rows of an input, so that they can share its packed form
bool is_shared(const NopropInput& input, int64_t n);

// Packs input j's rows of steps k_first .. k_last for all slices into the host's memory.
// NOPROP_BAD_INPUT: a feature is not finite.
NopropStatus pack_input(char*& data, const Isa& isa, const NopropPlan& plan,
                        const NopropInput& input, int32_t j, int64_t B, int64_t k_first,
                        int64_t k_last, Host& host);

// The number of threads that share a slice's work. All threads do if they outnumber the slices,
// as long as each has enough to do between two barriers.
int32_t team_size(const NopropPlan& plan, int64_t n, int64_t B, int32_t threads);

// The same number for a forward or a backward pass alone, and for an update from gradients.
int32_t parts_team_size(const NopropPlan& plan, int64_t tasks, int64_t rows, int32_t threads);
int32_t update_team_size(const NopropPlan& plan, int64_t n, int32_t threads);

// The rows of each task of a call on n slices whose B rows are independent, each of `width`
// elements: all, where they are few.
int64_t rows_a_task(int64_t n, int64_t B, int64_t width, int32_t threads);

// The multiply-adds of a chain's task of so many rows: those that its samples share, and those of
// each; or, of a row, an evaluation's.
struct ChainWork {
  int64_t once, a_sample, an_evaluation;
  int64_t rows;
  bool one_block;  // in all evaluations
};

ChainWork chain_work(const PredictTask& task, int64_t rows);

// The samples of each of `chains` chains that a task runs. Together they run once what z does not
// reach, which is worth more than threads of their own unless what it reaches is the larger part.
// In many evaluations of one block that is little, and few samples take little memory.
int64_t samples_a_task(const ChainWork& work, int64_t S, int64_t chains, int32_t threads);

// The number of threads that share each of `chains` chains on B rows, whose evaluations have so
// many multiply-adds a row, or are of a plan's blocks.
int32_t crew_size(int64_t multiply_adds, int64_t chains, int64_t B, int32_t threads);
int32_t crew_size(const NopropPlan& plan, int64_t chains, int64_t B, int32_t threads);

}  // namespace noprop
