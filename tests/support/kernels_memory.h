// For fuzz_kernels.cpp: memory that ends where its elements end, numbers from a fuzzer's bytes, and failing.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_SANITIZER 1
#endif
#endif

#define EXPECT(holds)                                                          \
  do {                                                                         \
    if (!(holds)) {                                                            \
      std::fprintf(stderr, "%s:%d: %s is wrong\n", __FILE__, __LINE__, #holds); \
      std::abort();                                                            \
    }                                                                          \
  } while (false)

// Exactly n elements. A sanitizer sees any access outside. Without one, the page after the last element cannot be read
// or written, not even by instructions that sanitizers do not know.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t n, size_t alignment = alignof(T)) : n_(n) {
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
#ifdef UNDER_SANITIZER
    void* base = nullptr;
    EXPECT(posix_memalign(&base, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes) == 0);
    const size_t begin = 0, mapped = 0;
#else
    constexpr size_t PAGE = 4096;
    const size_t readable = (bytes + PAGE - 1) / PAGE * PAGE, mapped = readable + PAGE;
    const size_t begin = (readable - bytes) / alignment * alignment;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(base != MAP_FAILED && mprotect(static_cast<char*>(base) + readable, PAGE, PROT_NONE) == 0);
#endif
    base_ = {base, Release{mapped}};
    data_ = reinterpret_cast<T*>(static_cast<char*>(base) + begin);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return n_; }
  // All bits set: floats are then no numbers.
  void fill_with_garbage() { std::memset(static_cast<void*>(data_), 0xff, static_cast<size_t>(n_) * sizeof(T)); }

 private:
  struct Release {
    size_t mapped;
    void operator()(void* base) const {
      if (mapped) munmap(base, mapped);
      else std::free(base);
    }
  };
  int64_t n_;
  T* data_;
  std::unique_ptr<void, Release> base_{nullptr, Release{0}};
};

// Numbers from a fuzzer's bytes, as long as there are some; then pseudo-random ones of these bytes.
class Numbers {
 public:
  Numbers(const uint8_t* bytes, size_t size) : bytes_(bytes), left_(size) {
    for (size_t i = 0; i < size; ++i) state_ = (state_ ^ bytes[i]) * 1099511628211u;
  }

  uint8_t byte() {
    if (left_ == 0) return static_cast<uint8_t>(random());
    --left_;
    return *bytes_++;
  }
  // From lowest to highest.
  int64_t from(int64_t lowest, int64_t highest) {
    const uint64_t two = uint64_t{byte()} << 8 | byte();
    return lowest + static_cast<int64_t>(two % static_cast<uint64_t>(highest - lowest + 1));
  }
  bool one_in(int64_t n) { return from(1, n) == 1; }

  // These never take bytes.
  uint64_t random() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_ >> 16;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); }
  // From -1 to 1.
  float uniform() { return static_cast<float>(static_cast<int64_t>(random() % 2000001) - 1000000) * 1e-6f; }

 private:
  const uint8_t* bytes_;
  size_t left_;
  uint64_t state_ = 14695981039346656037u;
};
