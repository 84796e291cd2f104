"""Benchmarks: ratios measured side by side, run by `make bench`."""
