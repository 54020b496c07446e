"""Our safetensors writer, with the safetensors library as the oracle."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gradience.errors import OutputError
from gradience.io.safetensors import SafetensorsFile, copied, planned, write_safetensors


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = [
        planned("x", "F32", (2, 3), lambda: x),
        planned("half", "F16", (2, 3), lambda: x),
        planned("scalar", "F64", (), lambda: np.float64(3.0) * np.ones(())),
        planned("empty", "F32", (0, 4), lambda: np.zeros((0, 4))),
    ]
    write_safetensors(tmp_path / "t.safetensors", tensors, metadata={"format": "pt", "odd": "x"})
    assert int.from_bytes((tmp_path / "t.safetensors").read_bytes()[:8], "little") % 8 == 0  # data begin aligned
    got = load_file(tmp_path / "t.safetensors")
    assert got["x"].tolist() == x.tolist()
    assert got["half"].dtype == np.float16
    assert got["scalar"].item() == 3.0
    assert got["empty"].shape == (0, 4)
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt", "odd": "x"}


def test_a_copy_is_bit_for_bit_whatever_the_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, 64, dtype=np.uint8)
    kinds = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32}
    made = [planned(n, n, (64 // np.dtype(k).itemsize,), lambda k=k: bits.view(k)) for n, k in kinds.items()]
    write_safetensors(tmp_path / "a.safetensors", made, metadata={})
    source = SafetensorsFile(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.safetensors", [copied(source, n) for n in kinds], metadata={})
    again = SafetensorsFile(tmp_path / "b.safetensors")
    for name in kinds:
        assert again.raw(name).tobytes() == bits.tobytes()
        assert again.tensors[name].dtype == name


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    one = planned("x", "F32", (1,), lambda: np.zeros(1))
    with pytest.raises(OutputError, match="two tensors"):
        write_safetensors(tmp_path / "t.safetensors", [one, one], metadata={})
