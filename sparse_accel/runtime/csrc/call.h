// One call of an operator: its inputs and outputs, checked, and the session's threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "matrix.h"
#include "ort.h"

namespace sparse_accel {

// Throws what onnxruntime says.
inline void check(const Ort& ort, OrtStatus* status) {
  if (!status) return;
  const std::string message = ort.message(status);
  ort.release(status);
  throw std::runtime_error(message);
}

inline void require(bool holds, const std::string& otherwise) {
  if (!holds) throw std::invalid_argument(otherwise);
}

// The tensor of a value; its data stay onnxruntime's.
inline Constant tensor(const Ort& ort, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort, ort.info(value, &info));
  Constant found{};
  size_t rank = 0;
  OrtStatus* status = ort.element_type(info, &found.element_type);
  if (!status) status = ort.rank(info, &rank);
  if (!status) {
    found.shape.resize(rank);
    status = ort.shape(info, found.shape.data(), rank);
  }
  ort.release(info);
  check(ort, status);
  void* data = nullptr;
  check(ort, ort.data(value, &data));
  found.data = data;
  return found;
}

// Reads attributes and constant inputs of a node.
class Node {
 public:
  Node(Ort ort, const OrtKernelInfo* info) : ort_(ort), info_(info) {}

  int64_t integer(const char* name, int64_t usual) const { return attribute<int64_t, float>(name, usual); }
  float number(const char* name, float usual) const { return attribute<float, int64_t>(name, usual); }

  // An input that is an initializer. Its data live as long as the session.
  Constant constant(size_t index, const char* what) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(ort_, ort_.constant(info_, index, &is_constant, &value));
    require(is_constant && value, std::string(what) + " must be an initializer");
    return tensor(ort_, value);
  }

 private:
  // `usual` where there is no such attribute; one of another type is a mistake.
  template <class T, class Other>
  T attribute(const char* name, T usual) const {
    T value{};
    Other other{};
    if (reads(name, &value)) return value;
    require(!reads(name, &other), std::string("attribute ") + name + " has another type");
    return usual;
  }

  template <class T>
  bool reads(const char* name, T* value) const {
    OrtStatus* status = ort_.attribute(info_, name, value);
    if (status) ort_.release(status);
    return !status;
  }

  Ort ort_;
  const OrtKernelInfo* info_;
};

class Call {
 public:
  Call(Ort ort, OrtKernelContext* context) : ort_(ort), context_(context) {}

  // An input of a type; data is null for an input that the node does not have.
  Constant input(size_t index, int element_type = ELEMENT_FLOAT) const {
    const OrtValue* value = nullptr;
    check(ort_, ort_.input(context_, index, &value));
    if (!value) return {};
    Constant found = tensor(ort_, value);
    require(found.element_type == element_type, "an input is of another type");
    return found;
  }

  float* output(const std::vector<int64_t>& shape) const {
    OrtValue* value = nullptr;
    check(ort_, ort_.output(context_, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(ort_, ort_.data(value, &data));
    return static_cast<float*>(data);
  }

  // Calls work(0) ... work(count - 1) on the session's threads. An exception of one is thrown here.
  template <class Work>
  void parallel(int64_t count, const Work& work) const {
    if (count == 1) return work(0);
    struct Shared {
      const Work& work;
      std::atomic_flag any_failed = ATOMIC_FLAG_INIT;
      std::exception_ptr failed = nullptr;
    } shared{work};
    const auto one = [](void* user, size_t index) {
      Shared& both = *static_cast<Shared*>(user);
      try {
        both.work(static_cast<int64_t>(index));
      } catch (...) {
        // One thread's exception is as good as another's.
        if (!both.any_failed.test_and_set()) both.failed = std::current_exception();
      }
    };
    check(ort_, ort_.parallel(context_, one, static_cast<size_t>(count), &shared));
    if (shared.failed) std::rethrow_exception(shared.failed);
  }

 private:
  Ort ort_;
  OrtKernelContext* context_;
};

using Shape = std::vector<int64_t>;

// The numbers of a float tensor in a larger shape: axes of length 1, and axes that are missing in front, are repeated.
// Throws std::invalid_argument(otherwise) where the shape is no larger one.
std::vector<float> broadcast(const Constant& from, const Shape& to, const char* otherwise);

// Memory of one thread that is kept from call to call, aligned to 64 bytes, zero where nothing was written yet.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  uint8_t* bytes(int64_t size);

 private:
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0;
};

// That of the calling thread.
uint8_t* scratch(int64_t bytes);

}  // namespace sparse_accel
