"""Kernels in C++ for what no library does well on a CPU: a few rows at a time."""
