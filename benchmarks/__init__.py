"""Benchmarks: ``python -m benchmarks NAME [--data FOLDER] [--quick]``. See README.md beside this file."""
