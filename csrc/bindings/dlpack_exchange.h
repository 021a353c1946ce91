// DLPack's exchange interface, version 1: a tensor's own library describes it to C. Layouts as in
// DLPack's dlpack.h 1.3 (https://github.com/dmlc/dlpack); only fields that are read here have their
// type.
#pragma once

#include <cstdint>

namespace noprop::dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1;                                                 // DLDeviceType
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;  // DLDataTypeCode

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;  // strides in elements
  uint64_t byte_offset;
};

struct Version {
  uint32_t major, minor;
};

struct Header {
  Version version;
  Header* prev_api;  // of an older major version, or null
};

// behind the capsule "dlpack_exchange_api" of a tensor's type
struct ExchangeApi {
  Header header;
  void *managed_tensor_allocator, *managed_tensor_from_py_object_no_sync,
      *managed_tensor_to_py_object_no_sync;
  // fills in a description that is valid until the object changes; returns 0, or sets an exception
  int (*dltensor_from_py_object_no_sync)(void* object, Tensor* out);
  void* current_work_stream;
};

// the interface of our major version, or null
inline const ExchangeApi* of_version(void* api) {
  auto* header = static_cast<Header*>(api);
  while (header && header->version.major != kMajor) header = header->prev_api;
  const auto* found = reinterpret_cast<const ExchangeApi*>(header);
  return found && found->dltensor_from_py_object_no_sync ? found : nullptr;
}

}  // namespace noprop::dlpack
