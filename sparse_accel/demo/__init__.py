"""What quickstart and benchmarks need; the library never imports it."""
