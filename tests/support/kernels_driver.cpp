// Runs fuzz_kernels.cpp without libFuzzer, on bytes of a generator: kernels_driver INPUTS SEED
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, size_t size);

int main(int, char** arguments) {
  std::mt19937 random(static_cast<unsigned>(std::atoi(arguments[2])));
  const int inputs = std::atoi(arguments[1]);
  for (int input = 0; input < inputs; ++input) {
    std::vector<unsigned char> bytes(2 + random() % 200);
    for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%d inputs\n", inputs);
}
