"""Parts of the benchmarks of evaluation: human judgements, features of outputs, and the peer."""
