#include "operators.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "call.h"
#include "dispatch.h"
#include "matrix.h"

namespace sparse_accel {

namespace {

// Tokens that are done at once: dense weights are read once for all of them, sparse ones are small. With few tokens, there
// are tiles for several threads.
int64_t tile_of(const Matrix& matrix, int64_t tokens) {
  if (!matrix.packed.sparse()) return tokens >= 12 * BLOCK ? 3 * BLOCK : BLOCK;
  return tokens >= 8 * BLOCK ? 2 * BLOCK : BLOCK;
}

const Kernels& kernels_or_throw() {
  const Kernels* kernels = chosen_kernels();
  const char* forced = std::getenv("SPARSE_ACCEL_ISA");
  require(kernels, forced && *forced ? std::string("SPARSE_ACCEL_ISA=") + forced + ": this CPU has no such kernels"
                                     : std::string("nobody has measured the kernels on CPUs like this one"));
  return *kernels;
}

// A vector of a node's constants, copied.
std::vector<float> floats(const Node& node, size_t index, const char* what, int64_t size) {
  const Constant found = node.constant(index, what);
  require(found.element_type == ELEMENT_FLOAT && found.size() == size,
          std::string(what) + " must be float, with a number for each output");
  const float* data = static_cast<const float*>(found.data);
  return {data, data + size};
}

Quantization quantization_of(const Node& node, const std::string& prefix) {
  const auto name = [&](const char* what) { return prefix + what; };
  return quantization(node.number(name("_scale").c_str(), 0.0f), node.integer(name("_zero_point").c_str(), 0),
                      node.integer(name("_lowest").c_str(), 0), node.integer(name("_highest").c_str(), 255));
}

Activation activation_of(const Node& node) {
  const int64_t activation = node.integer("activation", NO_ACTIVATION);
  require(activation >= NO_ACTIVATION && activation <= GELU_TANH, "attribute activation must be 0, 1 or 2");
  return static_cast<Activation>(activation);
}

float epsilon_of(const Node& node) {
  const float epsilon = node.number("epsilon", 1e-5f);
  require(epsilon >= 0 && epsilon < 1, "attribute epsilon must be from 0 to 1");
  return epsilon;
}

// The matrix of the inputs weight, weight_scale and bias, from input `at` on.
OwnedMatrix matrix_of(const Node& node, size_t at, const std::string& prefix, bool ordered,
                      const std::vector<int32_t>& input_order) {
  return OwnedMatrix(kernels_or_throw(), node.constant(at, "weight"), node.constant(at + 1, "weight_scale"),
                     node.constant(at + 2, "bias"), quantization_of(node, prefix), ordered, input_order);
}

// Checks x [.., columns] and returns the number of its rows.
int64_t rows_for(const Constant& x, const Matrix& matrix) {
  require(!x.shape.empty() && x.shape.back() == matrix.packed.header.columns,
          "x has another size than the weight has rows");
  return size_of(x.shape, x.shape.size() - 1);
}

class Linear {
 public:
  static constexpr const char* NAME = "Linear";
  static constexpr size_t INPUTS = 4;
  explicit Linear(const Node& node)
      : kernels_(kernels_or_throw()), activation_(activation_of(node)), matrix_(matrix_of(node, 1, "x", false, {})) {}
  void run(const Call& call) const { run(call, nullptr); }

 protected:
  void run(const Call& call, const LinearTask* norm) const {
    const Matrix& matrix = matrix_.view();
    const Constant x = call.input(0);
    const int64_t rows = rows_for(x, matrix), tile = tile_of(matrix, rows);
    Shape shape = x.shape;
    shape.back() = matrix.packed.header.rows;
    LinearTask task = norm ? *norm : LinearTask{};
    std::vector<float> repeated;
    if (norm) {
      const Constant residual = call.input(4);
      task.residual = static_cast<const float*>(residual.data);
      if (residual.shape != shape) {
        repeated = broadcast(residual, shape, "residual has another shape than the result");
        task.residual = repeated.data();
      }
    }
    task.matrix = &matrix;
    task.activation = activation_;
    task.x = static_cast<const float*>(x.data);
    task.y = call.output(shape);
    if (rows == 0) return;
    const int64_t bytes = activation_bytes(matrix.packed.header.encoding, matrix.packed.header.columns, tile);
    call.parallel((rows + tile - 1) / tile, [&](int64_t i) {
      kernels_.linear(task, i * tile, std::min(tile, rows - i * tile), scratch(bytes));
    });
  }

  const Kernels& kernels_;
  Activation activation_;
  OwnedMatrix matrix_;
};

class LinearAddNorm : Linear {
 public:
  static constexpr const char* NAME = "LinearAddNorm";
  static constexpr size_t INPUTS = 7;
  explicit LinearAddNorm(const Node& node)
      : Linear(node), epsilon_(epsilon_of(node)), gamma_(floats(node, 5, "gamma", matrix_.view().packed.header.rows)),
        beta_(floats(node, 6, "beta", matrix_.view().packed.header.rows)) {}
  void run(const Call& call) const {
    LinearTask norm{};
    norm.gamma = gamma_.data();
    norm.beta = beta_.data();
    norm.epsilon = epsilon_;
    Linear::run(call, &norm);
  }

 private:
  float epsilon_;
  std::vector<float> gamma_, beta_;
};

class FeedForward {
 public:
  static constexpr const char* NAME = "FeedForward";
  static constexpr size_t INPUTS = 9;
  explicit FeedForward(const Node& node)
      : kernels_(kernels_or_throw()), activation_(activation_of(node)), epsilon_(epsilon_of(node)),
        first_(matrix_of(node, 1, "x", true, {})), second_(matrix_of(node, 4, "hidden", false, first_.order())),
        gamma_(floats(node, 7, "gamma", second_.view().packed.header.rows)),
        beta_(floats(node, 8, "beta", second_.view().packed.header.rows)) {
    const Packed &first = first_.view().packed, &second = second_.view().packed;
    const Constant weight_2 = node.constant(4, "weight");
    require(second.header.columns == first.padded_rows() &&
                (weight_2.element_type != ELEMENT_INT8 || weight_2.shape[0] == first.header.rows),
            "the two weights do not fit together");
    require(second.header.rows == first.header.columns, "a feed-forward block must return what it gets");
  }

  void run(const Call& call) const {
    const Matrix &first = first_.view(), &second = second_.view();
    const Constant x = call.input(0);
    const int64_t rows = rows_for(x, first), tile = std::max(tile_of(first, rows), tile_of(second, rows));
    FeedForwardTask task{&first, &second, activation_, static_cast<const float*>(x.data), call.output(x.shape),
                         gamma_.data(), beta_.data(), epsilon_};
    if (rows == 0) return;
    const auto bytes_of = [&](const Matrix& matrix) {
      return (activation_bytes(matrix.packed.header.encoding, matrix.packed.header.columns, tile) + 63) / 64 * 64;
    };
    const int64_t bytes = bytes_of(first) + bytes_of(second);
    call.parallel((rows + tile - 1) / tile, [&](int64_t i) {
      kernels_.feed_forward(task, i * tile, std::min(tile, rows - i * tile), scratch(bytes));
    });
  }

 private:
  const Kernels& kernels_;
  Activation activation_;
  float epsilon_;
  OwnedMatrix first_, second_;
  std::vector<float> gamma_, beta_;
};

class Attention {
 public:
  static constexpr const char* NAME = "Attention";
  static constexpr size_t INPUTS = 4;
  explicit Attention(const Node& node)
      : kernels_(kernels_or_throw()), heads_(node.integer("heads", 0)), head_size_(node.integer("head_size", 0)),
        offsets_{node.integer("q_offset", 0), node.integer("k_offset", 0), node.integer("v_offset", 0)},
        scale_(node.number("scale", 1.0f)) {
    require(heads_ >= 1 && heads_ <= 4096 && head_size_ >= 1 && head_size_ <= 4096,
            "attributes heads and head_size must be from 1 to 4096");
    require(std::isfinite(scale_), "attribute scale must be a finite number");
    for (const int64_t offset : offsets_) require(offset >= 0 && offset <= MOST_ROWS, "an offset is out of range");
  }

  void run(const Call& call) const {
    const Constant q = call.input(0), k = call.input(1), v = call.input(2), mask = call.input(3);
    require(q.shape.size() == 3, "q must have 3 axes");
    const int64_t batch = q.shape[0], tokens = q.shape[1], width = heads_ * head_size_;
    const Constant* inputs[] = {&q, &k, &v};
    for (int i = 0; i < 3; ++i) {
      const Shape& shape = inputs[i]->shape;
      require(shape.size() == 3 && shape[0] == batch && shape[1] == tokens && offsets_[i] + width <= shape[2],
              "q, k and v must have the same rows and tokens, and room for all heads");
    }
    Shape shape = mask.shape;
    const float* mask_data = static_cast<const float*>(mask.data);
    std::vector<float> repeated;
    if (mask.data && shape.size() == 4 && shape[3] == 1 && tokens != 1) {
      shape[3] = tokens;
      repeated = broadcast(mask, shape, "mask cannot be repeated for all keys");
      mask_data = repeated.data();
    }
    if (mask.data) {
      const auto one_or = [](int64_t n, int64_t all) { return n == 1 || n == all; };
      require(shape.size() == 4 && one_or(shape[0], batch) && shape[1] == 1 && one_or(shape[2], tokens) && shape[3] == tokens,
              "mask must be [batch or 1, 1, tokens or 1, tokens]");
    }
    float* y = call.output({batch, tokens, width});
    if (batch == 0 || tokens == 0) return;
    const int64_t by_query = mask.data && shape[2] > 1 ? tokens : 0;
    const int64_t by_row = mask.data && shape[0] > 1 ? shape[2] * tokens : 0;
    const int64_t parts = (tokens + QUERIES - 1) / QUERIES;
    const auto part_of = [&](const Constant& input, int64_t offset, int64_t row, int64_t head) {
      return static_cast<const float*>(input.data) + row * tokens * input.shape[2] + offset + head * head_size_;
    };
    call.parallel(batch * heads_ * parts, [&](int64_t i) {
      const int64_t row = i / (heads_ * parts), head = i / parts % heads_, first = i % parts * QUERIES;
      AttentionTask task{};
      task.q = part_of(q, offsets_[0], row, head);
      task.k = part_of(k, offsets_[1], row, head);
      task.v = part_of(v, offsets_[2], row, head);
      task.mask = mask_data ? mask_data + row * by_row : nullptr;
      task.y = y + row * tokens * width + head * head_size_;
      task.stride_q = q.shape[2], task.stride_k = k.shape[2], task.stride_v = v.shape[2];
      task.stride_mask = by_query, task.stride_y = width;
      task.tokens = tokens, task.first_query = first, task.queries = std::min(QUERIES, tokens - first);
      task.head_size = head_size_, task.scale = scale_;
      kernels_.attention(task, reinterpret_cast<float*>(scratch(attention_floats(tokens, head_size_) * 4)));
    });
  }

 private:
  static constexpr int64_t QUERIES = 128;  // of one head, on one thread
  const Kernels& kernels_;
  int64_t heads_, head_size_, offsets_[3];
  float scale_;
};

class Lookup {
 public:
  static constexpr const char* NAME = "Lookup";
  static constexpr size_t INPUTS = 2;
  explicit Lookup(const Node& node) : kernels_(kernels_or_throw()), has_output_(node.number("y_scale", 0.0f) != 0.0f) {
    const Constant table = node.constant(1, "table");
    require((table.element_type == ELEMENT_INT8 || table.element_type == ELEMENT_UINT8) && table.shape.size() == 2,
            "a table must be int8 or uint8 [entries, size]");
    task_.table = static_cast<const uint8_t*>(table.data);
    task_.is_signed = table.element_type == ELEMENT_INT8;
    task_.entries = table.shape[0], task_.size = table.shape[1];
    task_.scale = node.number("scale", 0.0f);
    const int64_t zero_point = node.integer("zero_point", 0);
    require(task_.scale > 0.0f && task_.scale < 1e30f, "the scale of a table must be between 0 and 1e30");
    const int64_t lowest = task_.is_signed ? -128 : 0;
    require(zero_point >= lowest && zero_point <= lowest + 255, "the zero point of a table must be one of its integers");
    task_.zero_point = static_cast<int32_t>(zero_point);
    if (has_output_) output_ = quantization_of(node, "y");
  }

  void run(const Call& call) const {
    const Constant ids = call.input(0, ELEMENT_INT64);
    const int64_t count = ids.size();
    Shape shape = ids.shape;
    shape.push_back(task_.size);
    LookupTask task = task_;
    task.output = has_output_ ? &output_ : nullptr;
    task.ids = static_cast<const int64_t*>(ids.data);
    task.y = call.output(shape);
    if (count == 0) return;
    call.parallel((count + IDS - 1) / IDS, [&](int64_t i) {
      const int64_t first = i * IDS, part = std::min(IDS, count - first);
      if (!kernels_.lookup(task, first, part)) refuse(task, first, part);
    });
  }

 private:
  static constexpr int64_t IDS = 64;  // on one thread

  // Throws, with the id that is outside of the table.
  static void refuse(const LookupTask& task, int64_t first, int64_t count) {
    const auto outside = [&](int64_t id) { return id < -task.entries || id >= task.entries; };
    const int64_t* id = std::find_if(task.ids + first, task.ids + first + count, outside);
    throw std::invalid_argument("an id is outside of the table: " + std::to_string(*id) + ", not within " +
                                std::to_string(-task.entries) + " to " + std::to_string(task.entries - 1));
  }

  const Kernels& kernels_;
  bool has_output_;
  LookupTask task_{};
  Quantization output_{};
};

// A kernel as onnxruntime holds it: the operator, and the functions that it calls.
template <class Operator>
struct Kernel {
  Ort ort;
  Operator op;
};

template <class Function>
OrtStatus* guarded(const Ort& ort, const Function& function) {
  try {
    function();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return ort.error(ORT_INVALID_ARGUMENT, (std::string("sparse_accel: ") + error.what()).c_str());
  } catch (const std::exception& error) {
    return ort.error(ORT_FAIL, (std::string("sparse_accel: ") + error.what()).c_str());
  }
}

// The table of functions of one operator; `ort` comes after it, for the functions to find.
struct Table {
  OrtCustomOp functions{};
  Ort ort;
};

template <class Operator>
Table table_of(Ort ort) {
  Table table{{}, ort};
  OrtCustomOp& op = table.functions;
  op.version = API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return Operator::NAME; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Operator::INPUTS; };
  // Weights are int8 or packed uint8, and all types are checked by the operators.
  op.GetInputType = [](const OrtCustomOp*, size_t) -> int { return ELEMENT_UNDEFINED; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ELEMENT_FLOAT; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) -> int {
    return std::is_same_v<Operator, Attention> && index == 3 ? OPTIONAL : REQUIRED;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp* self, OrtApi*, const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
    const Ort& functions = reinterpret_cast<const Table*>(self)->ort;
    return guarded(functions, [&] {
      *kernel = new Kernel<Operator>{functions, Operator(Node(functions, info))};
    });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
    const auto& own = *static_cast<Kernel<Operator>*>(kernel);
    return guarded(own.ort, [&] { own.op.run(Call(own.ort, context)); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Operator>*>(kernel); };
  return table;
}

}  // namespace

struct Operators::Tables {
  Table tables[COUNT];
};

Operators::Operators(Ort ort)
    : tables_(new Tables{{table_of<Linear>(ort), table_of<LinearAddNorm>(ort), table_of<FeedForward>(ort),
                          table_of<Attention>(ort), table_of<Lookup>(ort)}}) {}

Operators::~Operators() = default;

std::array<const OrtCustomOp*, Operators::COUNT> Operators::all() const {
  std::array<const OrtCustomOp*, COUNT> found{};
  for (size_t i = 0; i < found.size(); ++i) found[i] = &tables_->tables[i].functions;
  return found;
}

}  // namespace sparse_accel
