// Classifies one text, given as token ids, with the sparse kernels and without Python:
//
//     ./classify libsparse_accel.so deployment/model.kernels.onnx 101 1037 3376 2143 102
//
// prints a logit on each line. The library holds operators for onnxruntime; it lies in the folder sparse_accel/runtime of
// the installed package. `export_onnx.py --kernels` makes model.kernels.onnx. README.md says how to compile this file.
//
// It needs no header of onnxruntime. The C interface of onnxruntime is a table of functions that only grows, so a function
// keeps its place for ever. With onnxruntime_c_api.h, api->CreateSession(...) is what CreateSession(...) is here.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct OrtStatus;
struct OrtEnv;
struct OrtSessionOptions;
struct OrtSession;
struct OrtRunOptions;
struct OrtAllocator;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

namespace {

constexpr uint32_t API_VERSION = 17;
const void* const* table;

const char* message_of(const OrtStatus* status) {
  return reinterpret_cast<const char* (*)(const OrtStatus*)>(const_cast<void*>(table[2]))(status);
}

// A function of onnxruntime: its place in the table, and the types of its parameters. A failure ends the program.
template <class... Parameters>
struct Function {
  int place;
  void operator()(Parameters... arguments) const {
    const auto call = reinterpret_cast<OrtStatus* (*)(Parameters...)>(const_cast<void*>(table[place]));
    if (const OrtStatus* status = call(arguments...)) {
      std::fprintf(stderr, "%s\n", message_of(status));
      std::exit(1);
    }
  }
};

constexpr Function<int, const char*, OrtEnv**> CreateEnv{3};
constexpr Function<const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**> CreateSession{7};
constexpr Function<OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,
                   const char* const*, size_t, OrtValue**> Run{9};
constexpr Function<OrtSessionOptions**> CreateSessionOptions{10};
constexpr Function<OrtSessionOptions*, int> SetIntraOpNumThreads{24};
constexpr Function<const OrtSession*, size_t*> SessionGetInputCount{30};
constexpr Function<const OrtSession*, size_t, OrtAllocator*, char**> SessionGetInputName{36};
constexpr Function<const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**>
    CreateTensorWithDataAsOrtValue{49};
constexpr Function<OrtValue*, void**> GetTensorMutableData{51};
constexpr Function<const OrtTensorTypeAndShapeInfo*, size_t*> GetTensorShapeElementCount{64};
constexpr Function<const OrtValue*, OrtTensorTypeAndShapeInfo**> GetTensorTypeAndShape{65};
constexpr Function<int, int, OrtMemoryInfo**> CreateCpuMemoryInfo{69};
constexpr Function<OrtAllocator**> GetAllocatorWithDefaultOptions{78};
constexpr Function<OrtSessionOptions*, const char*> RegisterCustomOpsLibrary{228};  // _V2: onnxruntime unloads it

// Numbers of onnxruntime's enumerations.
constexpr int WARNING = 2, ARENA_ALLOCATOR = 1, DEFAULT_MEMORY = 0, INT64 = 7;

}  // namespace

int main(int count, char** words) {
  if (count < 4) {
    std::fprintf(stderr, "usage: %s libsparse_accel.so model.kernels.onnx ID ID ...\n", words[0]);
    return 2;
  }
  table = OrtGetApiBase()->GetApi(API_VERSION);
  if (!table) {
    std::fprintf(stderr, "onnxruntime %s is too old: 1.17 or newer is needed\n", OrtGetApiBase()->GetVersionString());
    return 1;
  }

  // The session. Nothing is released here: this program ends with it.
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  CreateEnv(WARNING, "classify", &env);
  CreateSessionOptions(&options);
  SetIntraOpNumThreads(options, 1);
  RegisterCustomOpsLibrary(options, words[1]);
  CreateSession(env, words[2], options, &session);

  // One row of ids without padding: the mask is 1 everywhere, and the token types are 0.
  std::vector<int64_t> ids;
  for (int at = 3; at < count; ++at) {
    char* end = nullptr;
    ids.push_back(std::strtoll(words[at], &end, 10));
    if (*end || end == words[at]) {
      std::fprintf(stderr, "error: %s is not a token id\n", words[at]);
      return 2;
    }
  }
  std::vector<int64_t> ones(ids.size(), 1), zeros(ids.size(), 0);
  const int64_t shape[] = {1, static_cast<int64_t>(ids.size())};

  // The inputs that this model has: not every one has token types.
  OrtAllocator* allocator = nullptr;
  OrtMemoryInfo* memory = nullptr;
  size_t inputs = 0;
  GetAllocatorWithDefaultOptions(&allocator);
  CreateCpuMemoryInfo(ARENA_ALLOCATOR, DEFAULT_MEMORY, &memory);
  SessionGetInputCount(session, &inputs);
  std::vector<const char*> names;
  std::vector<const OrtValue*> values;
  for (size_t index = 0; index < inputs; ++index) {
    char* name = nullptr;
    OrtValue* value = nullptr;
    SessionGetInputName(session, index, allocator, &name);
    auto& row = name == std::string("input_ids") ? ids : name == std::string("attention_mask") ? ones : zeros;
    CreateTensorWithDataAsOrtValue(memory, row.data(), row.size() * sizeof(int64_t), shape, 2, INT64, &value);
    names.push_back(name);
    values.push_back(value);
  }

  const char* const outputs[] = {"logits"};
  OrtValue* logits = nullptr;
  Run(session, nullptr, names.data(), values.data(), inputs, outputs, 1, &logits);

  OrtTensorTypeAndShapeInfo* info = nullptr;
  size_t size = 0;
  void* numbers = nullptr;
  GetTensorTypeAndShape(logits, &info);
  GetTensorShapeElementCount(info, &size);
  GetTensorMutableData(logits, &numbers);
  for (size_t at = 0; at < size; ++at) std::printf("%.6f\n", static_cast<const float*>(numbers)[at]);
}
