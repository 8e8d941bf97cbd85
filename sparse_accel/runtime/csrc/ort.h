// The part of onnxruntime's C interface that this library calls, declared here because onnxruntime's wheel has no header.
//
// The interface is a table of functions that only grows: a function keeps its place for ever. So each function that is
// used is an index into the table and a type. Indices 0 to 274 exist since API version 17 (onnxruntime 1.17).
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtCustomOp;

using OrtApi = const void* const;  // the table's entries

struct OrtApiBase {
  OrtApi* (*GetApi)(uint32_t version);  // null: this onnxruntime is older than that version
  const char* (*GetVersionString)();
};

// Numbers of onnxruntime's enumerations.
enum : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum : int { ELEMENT_UNDEFINED = 0, ELEMENT_FLOAT = 1, ELEMENT_UINT8 = 2, ELEMENT_INT8 = 3, ELEMENT_INT64 = 7 };
enum : int { REQUIRED = 0, OPTIONAL = 1 };

// What an operator is made of: onnxruntime calls these functions. Fields up to API version 18, in onnxruntime's order.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);               // since 13
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);                 // since 14
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*, void**);  // since 16
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShape)(const OrtCustomOp*, OrtShapeInferContext*);                // since 17
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);                                                    // since 18
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

namespace sparse_accel {

constexpr uint32_t API_VERSION = 17;

// The functions of the table, by their index.
struct Ort {
  OrtApi* table;

  template <class... A>
  OrtStatus* call(int index, A... arguments) const {
    return reinterpret_cast<OrtStatus* (*)(A...)>(const_cast<void*>(table[index]))(arguments...);
  }

  OrtStatus* error(int code, const char* message) const { return call(0, code, message); }
  const char* message(const OrtStatus* status) const {
    return reinterpret_cast<const char* (*)(const OrtStatus*)>(const_cast<void*>(table[2]))(status);
  }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) const { return call(26, name, out); }
  OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) const { return call(27, domain, op); }
  OrtStatus* add_domain(OrtSessionOptions* to, OrtCustomOpDomain* domain) const { return call(28, to, domain); }
  OrtStatus* data(const OrtValue* value, void** out) const { return call(51, const_cast<OrtValue*>(value), out); }
  OrtStatus* element_type(const OrtTensorTypeAndShapeInfo* info, int* out) const { return call(60, info, out); }
  OrtStatus* rank(const OrtTensorTypeAndShapeInfo* info, size_t* out) const { return call(61, info, out); }
  OrtStatus* shape(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t n) const { return call(62, info, out, n); }
  OrtStatus* info(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const { return call(65, value, out); }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* out) const { return call(85, info, name, out); }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* out) const { return call(86, info, name, out); }
  OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** out) const {
    return call(90, context, index, out);
  }
  OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank, OrtValue** out) const {
    return call(91, context, index, shape, rank, out);
  }
  void release(OrtStatus* status) const { release_at(93, status); }
  void release(OrtTensorTypeAndShapeInfo* info) const { release_at(99, info); }
  OrtStatus* constant(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) const {
    return call(249, info, index, is_constant, out);
  }
  // Calls function(user, 0) ... function(user, count - 1) on the session's threads, and waits for all.
  OrtStatus* parallel(const OrtKernelContext* context, void (*function)(void*, size_t), size_t count, void* user) const {
    return call(274, context, function, count, size_t{0}, user);
  }

 private:
  void release_at(int index, void* object) const {
    reinterpret_cast<void (*)(void*)>(const_cast<void*>(table[index]))(object);
  }
};

}  // namespace sparse_accel
