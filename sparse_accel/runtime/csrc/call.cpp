#include "call.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace sparse_accel {

Scratch::~Scratch() { std::free(memory_); }

uint8_t* Scratch::bytes(int64_t size) {
  if (size > size_) {
    size = (size + 63) / 64 * 64;
    std::free(memory_);
    memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(size)));
    size_ = memory_ ? size : 0;
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_, 0, static_cast<size_t>(size));
  }
  return memory_;
}

uint8_t* scratch(int64_t bytes) {
  static thread_local Scratch own;
  return own.bytes(bytes);
}

std::vector<float> broadcast(const Constant& from, const Shape& to, const char* otherwise) {
  require(from.shape.size() <= to.size(), otherwise);
  const size_t missing = to.size() - from.shape.size();
  Shape strides(to.size(), 0);
  int64_t size = 1, stride = 1;
  for (size_t axis = to.size(); axis-- > 0; size *= to[axis]) {
    if (axis < missing) continue;
    const int64_t length = from.shape[axis - missing];
    require(length == 1 || length == to[axis], otherwise);
    if (length != 1) strides[axis] = stride;
    stride *= length;
  }
  std::vector<float> found(static_cast<size_t>(size));
  const float* data = static_cast<const float*>(from.data);
  for (int64_t at = 0; at < size; ++at) {
    int64_t rest = at, source = 0;
    for (size_t axis = to.size(); axis-- > 0; rest /= to[axis]) source += rest % to[axis] * strides[axis];
    found[at] = data[source];
  }
  return found;
}

}  // namespace sparse_accel
