// The evaluations of a chain (chain_calls.py's Chain).
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "call_reader.h"

namespace noprop {

struct Chain {
  std::vector<uint8_t> ends;  // our own, since the workspace depends on it
  NopropChain chain = {};

  Chain(Reader& reader, const Plan& plan, const py::object& call) {
    const py::object given = get(call, "chain"), a = get(given, "a");
    Tensors& tensors = reader.tensors;
    const int64_t E = chain.evaluations = reader.sizes(a, {"a"}, 1).shape[0];
    if (E < 1) tensors.refuse({"a"}, "have at least 1 evaluation, got 0");
    chain.a = reader.floats(a, {"a"}, {E});
    chain.b = reader.floats(get(given, "b"), {"b"}, {E});
    chain.sqrt_c = reader.floats(get(given, "sqrt_c"), {"sqrt_c"}, {E});
    chain.weight = reader.floats(get(given, "weight"), {"weight"}, {E});
    chain.next = reader.floats(get(given, "next"), {"next"}, {E});
    chain.keep = reader.floats(get(given, "keep"), {"keep"}, {E});
    tensors.copied(get(given, "ends"), {"ends"}, Kind::kBool, {E}, ends);
    chain.ends = ends.data();
    if (!ends.back()) tensors.refuse({"ends"}, "be true of the last evaluation, got false");
    chain.t_input = -1;
    if (const py::object t = get(given, "t"); !t.is_none()) take_t(reader, plan, call, t);
  }
  Chain(const Chain&) = delete;

  // results are kept after every evaluations / kept of them
  void check_kept(const Tensors& tensors, int64_t kept) const {
    const int64_t E = chain.evaluations;
    if (kept < 1 || E % kept != 0)
      tensors.refuse({"logits"}, "be kept after each of equal parts of " + std::to_string(E) +
                                     " evaluations, got " + std::to_string(kept) + " parts");
    for (int64_t e = E / kept; e <= E; e += E / kept)
      if (!ends[static_cast<size_t>(e - 1)])
        tensors.refuse({"ends"}, "be true where results are kept, got false of evaluation " +
                                     std::to_string(e - 1));
  }

 private:
  void take_t(Reader& reader, const Plan& plan, const py::object& call, const py::object& t) {
    const py::str name("t");
    for (size_t j = 0; j < plan.input_widths.size(); ++j)
      if (plan.names[j].equal(name)) chain.t_input = static_cast<int32_t>(j);
    if (chain.t_input < 0 || chain.t_input == plan.plan.z)
      reader.tensors.refuse({"t"}, "be None, since the plan has no such input");
    if (!item(get(call, "inputs"), name).is_none())
      reader.tensors.refuse({"t"}, "be given by the chain or among the inputs, got both");
    const int64_t F = plan.input_widths[static_cast<size_t>(chain.t_input)];
    chain.t = reader.floats(t, {"t"}, {chain.evaluations, F});
    for (int64_t i = 0; i < chain.evaluations * F; ++i)
      if (!std::isfinite(chain.t[i]))
        reader.tensors.refuse({"t"}, "be finite, got NaN or infinity");
  }
};

}  // namespace noprop
