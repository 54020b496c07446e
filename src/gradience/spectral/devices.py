"""The devices on which this process computes, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


def use_device(device: str) -> None:
    """Choose the devices on which this process computes: `auto`, `cpu`, `gpu` or `tpu`. Call it at program start.

    Raises:
        ValueError: JAX has no such device here.
    """
    if device == "auto":
        return
    try:
        jax.config.update("jax_default_device", jax.devices(device)[0])
    except RuntimeError as error:
        message = f"JAX finds no {device} device here: {error}"
        raise ValueError(message) from error


def devices() -> list[jax.Device]:
    """The local devices on which this process computes: all of the default device's kind, and of a CPU one."""
    default = jax.config.jax_default_device  # type: ignore[attr-defined, unused-ignore]  # JAX from 0.12 declares it
    # The setting is a device, a platform's name, or None for JAX's own choice.
    local: list[jax.Device] = jax.local_devices(backend=getattr(default, "platform", default))
    # The devices of a CPU share its cores, which our threads use.
    return local[:1] if local[0].platform == "cpu" else local


def has_float64() -> bool:
    """Whether the devices compute in float64. TPUs do not."""
    return str(devices()[0].platform) != "tpu"


def devices_of_float64() -> list[jax.Device]:
    """The devices that compute in float64: the CPU's if those of this process do not."""
    return devices() if has_float64() else jax.local_devices(backend="cpu")[:1]


@contextmanager
def float64() -> Iterator[None]:
    """A context, of this thread alone, in which JAX computes in float64; on the CPU if the devices do not."""
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        if has_float64():
            yield
        else:
            with jax.default_device(devices_of_float64()[0]):
                yield
