// The operators of the domain sparse_accel, as onnxruntime sees them.
#pragma once

#include <array>
#include <memory>

#include "ort.h"

namespace sparse_accel {

// All operators, for the functions of a running onnxruntime.
class Operators {
 public:
  static constexpr size_t COUNT = 5;
  explicit Operators(Ort ort);
  ~Operators();
  std::array<const OrtCustomOp*, COUNT> all() const;

 private:
  struct Tables;
  std::unique_ptr<Tables> tables_;
};

}  // namespace sparse_accel
