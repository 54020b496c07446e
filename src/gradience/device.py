"""JAX, set up for the verbs that compute: devices, threads and the compilation cache.

The setup must come before the first import of JAX in the process, because XLA reads its flags only once.
"""

from __future__ import annotations

import os
import warnings
from typing import Final

from gradience.errors import GradienceError

_SERIAL: Final = "--xla_cpu_multi_thread_eigen"
_CACHE_FAILED: Final = "Error (reading|writing) persistent compilation cache entry"


def prepare_jax(device: str, *, serial_kernels: bool = False) -> None:
    """Set up JAX in this process: no preallocation of memory, and compiled kernels cached between runs.

    JAX's own settings come first: `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off, and
    `JAX_COMPILATION_CACHE_DIR` is another folder for it.

    Args:
        device: `auto`, `cpu`, `gpu` or `tpu`.
        serial_kernels: on a CPU, run each kernel on the thread that calls it. This is faster if there are more modules
            than cores, because several threads on one small product hinder each other.

    Raises:
        GradienceError: the device does not exist.
    """
    # By default JAX takes three quarters of a GPU's memory at its start, beside a training that may run there.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    if serial_kernels and _SERIAL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_SERIAL}=false".lstrip()
    import jax  # imported only by the verbs that compute

    from gradience.io import cache_folder  # the same

    if serial_kernels:
        # The flag keeps a kernel on one thread; without asynchronous dispatch, that is the thread which calls it.
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # noqa: FBT003  # JAX's own signature

    warnings.filterwarnings("ignore", message=_CACHE_FAILED)  # on a full disk, or a damaged entry, JAX compiles again
    if jax.config.values["jax_enable_compilation_cache"] and (cache := cache_folder("jax")) is not None:
        jax.config.update("jax_compilation_cache_dir", jax.config.values["jax_compilation_cache_dir"] or str(cache))
        # By default JAX keeps only what took a second to compile; our kernels are many, and most take less.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from gradience.spectral.devices import use_device

    try:
        use_device(device)
    except ValueError as error:
        raise GradienceError(str(error), advice="use --device auto") from error
