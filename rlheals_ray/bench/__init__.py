"""Benchmarks: this system beside what one would otherwise use, ratio by ratio, in one run (docs/benchmarks.md)."""
