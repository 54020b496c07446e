"""Arrays to numbers: the JAX core. Knows no files, no configs, nothing else of ours.

The maths is written for one module in `update` and `metrics`; `batch` is the only vmap and jit.
"""
