"""Tensors that threads compute while others are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Final

from gradience.adapters.layout import Array
from gradience.io.safetensors import PlannedTensor
from gradience.spectral.grams import each_in_threads

_AHEAD: Final = 2  # for each thread: one at work, one that waits to be written
_LARGE: Final = 1 << 26  # bytes: such a tensor, an embedding that is copied, is alone in memory


@contextmanager
def loaded_ahead(tensors: Sequence[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """The tensors, to be loaded once and in their order; the next few are computed meanwhile, from several threads."""
    tasks = [partial(_loader, tensor) for tensor in tensors]
    with closing(each_in_threads(tasks, ahead=_AHEAD, waits=False)) as loaders:  # a signal ends it at once

        def load() -> Array:
            return next(loaders)()

        yield [tensor._replace(load=load) for tensor in tensors]


def _loader(tensor: PlannedTensor) -> Callable[[], Array]:
    """What gives the data: at hand, or to be asked for where they are large or another thread is about to have them."""
    if tensor.nbytes > _LARGE or tensor.with_another:
        return tensor.load
    data = tensor.load()
    return lambda: data
