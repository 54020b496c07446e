"""Arrays to numbers: the JAX core. Knows no files, no configs, nothing else of ours.

The maths is written for one module in `batch` and `update`; `batch` vmaps and jits it, `tiles` the Gram matrices.
"""
