"""Matrices of shape (260, 200) with chosen singular values."""

from __future__ import annotations

import numpy as np

M, N = 260, 200
_RNG = np.random.default_rng(3)
_U, _V = (np.linalg.qr(_RNG.standard_normal((size, N)))[0] for size in (M, N))
FLAT = np.linalg.svd(_RNG.standard_normal((M, N)), compute_uv=False)
SPECTRA = {
    "flat": FLAT,
    "decaying": 1.0 / np.arange(1, N + 1),
    "one spike": np.r_[100.0, FLAT[1:] / FLAT[1]],
    "rank 3": np.r_[3.0, 2.0, 1.0, np.zeros(N - 3)],
    "two equal on top": np.r_[2.0, 2.0, FLAT[2:] / FLAT[2]],
    "all equal": np.ones(N),
    "ill-conditioned": np.logspace(0, -12, N),
    "zero": np.zeros(N),
}


def of(sigma: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The float32 matrix with those singular values, times the scale."""
    return (((_U * sigma) @ _V.T) * scale).astype(np.float32)
