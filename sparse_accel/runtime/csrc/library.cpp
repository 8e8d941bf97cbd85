// What the library exports: RegisterCustomOps, which onnxruntime looks for, and packing for the Python side.
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "call.h"
#include "dispatch.h"
#include "matrix.h"
#include "operators.h"
#include "packing.h"

#define SPARSE_ACCEL_EXPORT extern "C" __attribute__((visibility("default")))

using namespace sparse_accel;

namespace {

struct Handle {
  Block block;
  Packed packed;
};

// The text stays until the thread's next error.
const char* kept(const std::string& message) {
  static thread_local std::string last;
  last = message;
  return last.c_str();
}

// The domain with all operators, one for each onnxruntime in this process. It stays: sessions point into it.
OrtStatus* domain_of(Ort ort, OrtCustomOpDomain** domain) {
  static std::mutex one_at_a_time;
  static std::map<OrtApi*, OrtCustomOpDomain*> known;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  OrtCustomOpDomain*& found = known[ort.table];
  if (!found) {
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* status = ort.create_domain("sparse_accel", &made)) return status;
    for (const OrtCustomOp* op : (new Operators(ort))->all())
      if (OrtStatus* status = ort.add_operator(made, op)) return status;
    found = made;
  }
  *domain = found;
  return nullptr;
}

}  // namespace

SPARSE_ACCEL_EXPORT int32_t sparse_accel_abi() { return 3; }

SPARSE_ACCEL_EXPORT const char* sparse_accel_instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* kernels : kernels_of_this_cpu()) joined += (joined.empty() ? "" : ",") + std::string(kernels->name);
    return joined;
  }();
  return names.c_str();
}

SPARSE_ACCEL_EXPORT const char* sparse_accel_default_instruction_set() {
  const Kernels* kernels = default_kernels();
  return kernels ? kernels->name : "";
}

// Packs a weight int8 [K][N] for an instruction set. Returns null with *error set where it cannot, and null without an error
// where the weight is too dense to gain from these kernels. input_order: `columns` numbers, or null.
SPARSE_ACCEL_EXPORT void* sparse_accel_pack(const char* isa, const int8_t* weight, int64_t K, int64_t N,
                                            const int32_t* input_order, int64_t columns, int32_t ordered,
                                            const char** error) {
  *error = nullptr;
  try {
    const Kernels* kernels = kernels_named(isa);
    require(kernels, "this CPU has no such instruction set");
    PackingRequest request{kernels->sparse, kernels->dense, kernels->most_density, ordered != 0, {}};
    require(columns >= 0, "the order of the columns has a negative length");
    if (input_order) request.input_order.assign(input_order, input_order + columns);
    auto handle = std::make_unique<Handle>();
    handle->block = pack({weight, K, N}, request);
    if (const char* wrong = read_packed(handle->block.bytes.data(), static_cast<int64_t>(handle->block.bytes.size()),
                                        &handle->packed))
      throw std::invalid_argument(wrong);
    if (!kernels->takes_dense && handle->block.density > kernels->most_density) return nullptr;
    return handle.release();
  } catch (const std::exception& failed) {
    *error = kept(failed.what());
    return nullptr;
  }
}

SPARSE_ACCEL_EXPORT const uint8_t* sparse_accel_packed_data(void* handle) {
  return static_cast<Handle*>(handle)->block.bytes.data();
}
SPARSE_ACCEL_EXPORT int64_t sparse_accel_packed_size(void* handle) {
  return static_cast<int64_t>(static_cast<Handle*>(handle)->block.bytes.size());
}
SPARSE_ACCEL_EXPORT const int32_t* sparse_accel_packed_order(void* handle) { return static_cast<Handle*>(handle)->packed.order; }
SPARSE_ACCEL_EXPORT int64_t sparse_accel_packed_rows(void* handle) {
  return static_cast<Handle*>(handle)->packed.padded_rows();
}
SPARSE_ACCEL_EXPORT double sparse_accel_packed_density(void* handle) { return static_cast<Handle*>(handle)->block.density; }
SPARSE_ACCEL_EXPORT int32_t sparse_accel_packed_is_sparse(void* handle) {
  return static_cast<Handle*>(handle)->packed.sparse();
}
SPARSE_ACCEL_EXPORT void sparse_accel_packed_free(void* handle) { delete static_cast<Handle*>(handle); }

// The int32 sums of uint8 activations x [M][K] with a weight packed for `isa`: out [M][N], without the zero point's part.
// Returns 0, or 1 where the block, its shape or the zero point is wrong.
SPARSE_ACCEL_EXPORT int32_t sparse_accel_sums(const char* isa, const uint8_t* packed, int64_t size, const uint8_t* x,
                                              int64_t M, int64_t K, int64_t N, int32_t zero_point, int32_t* out) {
  try {
    const Kernels* kernels = kernels_named(isa);
    require(kernels, "this CPU has no such instruction set");
    const OwnedMatrix matrix(*kernels, packed, size, zero_point);
    const Header& header = matrix.view().packed.header;
    require(header.columns == K && header.rows == N, "packed weight: of another shape");
    for (int64_t done = 0; done < M; done += BLOCK) {
      const int64_t tokens = M - done < BLOCK ? M - done : BLOCK;
      kernels->sums(matrix.view(), x + done * header.columns, tokens, out + done * header.rows,
                    scratch(activation_bytes(header.encoding, header.columns, tokens)));
    }
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

SPARSE_ACCEL_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  OrtApi* table = base->GetApi(API_VERSION);
  if (!table) {
    // This onnxruntime is too old. The function that makes an error is the first of any version's table.
    OrtApi* oldest = base->GetApi(1);
    return oldest ? Ort{oldest}.error(ORT_FAIL, "sparse_accel needs onnxruntime 1.17 or newer") : nullptr;
  }
  try {
    OrtCustomOpDomain* domain = nullptr;
    if (OrtStatus* status = domain_of(Ort{table}, &domain)) return status;
    return Ort{table}.add_domain(options, domain);
  } catch (const std::exception& failed) {
    return Ort{table}.error(ORT_FAIL, failed.what());
  }
}
