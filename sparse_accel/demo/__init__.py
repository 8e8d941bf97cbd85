"""Code for the quickstart and the benchmarks; the library never imports it."""
