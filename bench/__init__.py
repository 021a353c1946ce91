"""Benchmarks: our kernels against plain PyTorch rivals on the same maths, checked, then timed."""
