"""Parts of the benchmarks of decoding."""
