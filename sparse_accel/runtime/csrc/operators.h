// The operators of the domain sparse_accel, as onnxruntime sees them.
#pragma once

#include <array>
#include <memory>

#include "ort.h"

namespace sparse_accel {

// All operators, for the functions of a running onnxruntime.
class Operators {
 public:
  explicit Operators(Ort ort);
  ~Operators();
  std::array<const OrtCustomOp*, 4> all() const;

 private:
  struct Tables;
  std::unique_ptr<Tables> tables_;
};

}  // namespace sparse_accel
