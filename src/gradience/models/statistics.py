"""Second moments of the values at an adapter's factors: z = A x forward, and the loss's gradient h = s B^T g backward.

The loss is the cross entropy of labels drawn from the model's own output distribution, summed over the predictions that
count. The second moment of its gradients is the Fisher information of the outputs, and no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, ParamWrapper

from gradience.errors import AdapterError
from gradience.io import Progress
from gradience.models import FIRST, LoadedModel
from gradience.models.inputs import InputBatch
from gradience.models.outputs import log_probs, logits_of, row_sizes

Floats = npt.NDArray[np.float64]

_SOUND = "check the weights of the base: damaged, or of another dtype than the file says"
_CONVERT = "turn it into plain LoRA first: see 'gradience convert --help'"


class Moments(NamedTuple):
    """The second moments G = E[z z^T] and H = E[h h^T] of one module over its tokens, (r, r) in float64."""

    g: Floats
    h: Floats


class Statistics(NamedTuple):
    """The moments of each module by its path, and the number of predictions.

    `gradients` reads from the folder a module's sums of h z^T over the tokens of each sequence, (sequences, r, r).
    """

    moments: dict[str, Moments]
    predictions: int
    gradients: Callable[[str], Floats]


def lora_layers(loaded: LoadedModel, paths: Sequence[str]) -> dict[str, Any]:
    """Return PEFT's layers of the modules, by path.

    Raises:
        AdapterError: a layer does not compute B (A x): it is a variant of LoRA, or treats attention as a whole.
    """
    layers = {}
    for path in paths:
        layer = loaded.model.base_model.model.get_submodule(path)
        if not isinstance(layer, LoraLayer) or isinstance(layer, MultiheadAttention | ParamWrapper):
            raise AdapterError(
                f"{path} is {type(layer).__name__}: it merges its factors before any token meets them, so there is no "
                "A x to observe",
                advice="resize it by its weights, without --kl, --calibrate and --recover",
            )
        if FIRST in layer.lora_variant:
            what = type(layer.lora_variant[FIRST]).__name__
            raise AdapterError(f"{path} is a variant of LoRA ({what}): its update is not s B A alone", advice=_CONVERT)
        layers[path] = layer
    return layers


def statistics(
    loaded: LoadedModel,
    layers: Mapping[str, Any],
    parts: Sequence[InputBatch],
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> Statistics:
    """Compute the statistics by one forward and one backward pass over each batch.

    Args:
        loaded: the model.
        layers: the layers, from `lora_layers`.
        parts: the batches.
        seed: seed of the labels that are drawn.
        folder: folder for the sums of each sequence; it must outlive the result.
        progress: called with (sequences done, all sequences, name of the work).

    Raises:
        AdapterError: the model's outputs are not finite.
    """
    generator = torch.Generator(device=loaded.device).manual_seed(seed)
    total = sum(len(batch.rows) for batch in parts)
    ranks = {path: int(layer.r[FIRST]) for path, layer in layers.items()}
    is_double = next(iter(loaded.model.parameters())).dtype == torch.float64
    dtype = np.float64 if is_double else np.float32
    kept = {  # on disk, because many modules of a high rank take gigabytes
        path: np.memmap(folder / f"{n}", dtype, "w+", shape=(total, r, r)) for n, (path, r) in enumerate(ranks.items())
    }
    sums = {path: _Sums(ranks[path], loaded.device) for path in layers}
    predictions = done = 0
    with _observed(layers, sums):
        for batch in parts:
            for one in sums.values():
                one.begin(batch, loaded.device)
            with torch.enable_grad():
                log_p = log_probs(logits_of(loaded, batch))
                # Before the draw: NaN in it ends a process on a GPU by an assertion of the device.
                if bool(log_p.detach().isnan().any()):
                    raise AdapterError("the outputs of the base with the adapter are not finite", advice=_SOUND)
                drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                (-log_p.gather(1, drawn).sum()).backward()
            for path, one in sums.items():
                kept[path][done : done + len(batch.rows)] = one.of_rows.cpu().numpy()
            predictions += sum(row_sizes(loaded, batch))
            done += len(batch.rows)
            if progress is not None:
                progress(done, total, "forward and backward")
    moments = {path: one.moments() for path, one in sums.items()}
    return Statistics(moments, predictions, lambda path: np.asarray(kept[path], np.float64))


class _Sums:
    """Sums over the tokens of one module: z z^T and h h^T over all batches, h z^T for each row of the current batch."""

    def __init__(self, r: int, device: torch.device) -> None:
        self._zz = torch.zeros(r, r, dtype=torch.float64, device=device)
        self._hh = torch.zeros_like(self._zz)
        self._tokens = 0
        self._mask = torch.ones(0)
        self.of_rows = torch.zeros(0, r, r)

    def begin(self, batch: InputBatch, device: torch.device) -> None:
        """Prepare for a new batch."""
        self._mask = torch.from_numpy(batch.mask).to(device)
        self.of_rows = torch.zeros(len(batch.rows), *self._zz.shape, dtype=torch.float64, device=device)

    def add(self, z: torch.Tensor, h: torch.Tensor) -> None:
        """Add the tokens of one call of the module; z and h have the same shape, (rows, ..., r).

        Raises:
            AdapterError: the module does not see the rows of the batch, so its sums cannot be assigned to inputs.
        """
        rows, width = self._mask.shape
        if z.shape[0] not in {rows, rows * width}:
            raise AdapterError(
                f"a module sees {z.shape[0]} rows of a batch of {rows}: its tokens cannot be told apart by input",
                advice="resize it by its weights, without --kl, --calibrate and --recover",
            )
        z, h = (x.detach().reshape(rows, -1, x.shape[-1]).double() for x in (z, h))
        if z.shape[1] == width:  # otherwise the module has a sequence of its own, such as a pooled one
            z = z * self._mask[:, :, None]
            h = h * self._mask[:, :, None]
            self._tokens += int(self._mask.sum())
        else:
            self._tokens += z.shape[0] * z.shape[1]
        self._zz += torch.einsum("nti,ntj->ij", z, z)
        self._hh += torch.einsum("nti,ntj->ij", h, h)
        self.of_rows += h.transpose(1, 2) @ z

    def moments(self) -> Moments:
        """The means over the tokens; zero for a module without gradient."""
        count = max(self._tokens, 1)
        return Moments((self._zz / count).cpu().numpy(), (self._hh / count).cpu().numpy())


@contextmanager
def _observed(layers: Mapping[str, Any], sums: Mapping[str, _Sums]) -> Iterator[None]:
    """A context in which each layer's z and h are added to its sums."""
    handles = []
    for path, layer in layers.items():
        if FIRST in layer.lora_embedding_A:
            handles.append(layer.register_forward_hook(_of_embedding(sums[path])))
        else:
            handles.append(layer.lora_A[FIRST].register_forward_hook(_of_factor(sums[path])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _of_factor(sums: _Sums) -> Callable[..., torch.Tensor]:
    """A hook on A: its output is z, and the gradient of the output is h."""

    def hook(module: torch.nn.Module, _inputs: Any, z: torch.Tensor) -> torch.Tensor:
        if not z.requires_grad:  # no adapted module comes before it
            z = z.detach().requires_grad_()
        is_conv = not isinstance(module, torch.nn.Linear)
        kept = z.detach()

        def take(h: torch.Tensor) -> None:
            sums.add(_channels_last(kept), _channels_last(h)) if is_conv else sums.add(kept, h)

        z.register_hook(take)
        return z

    return hook


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1)


def _of_embedding(sums: _Sums) -> Callable[..., torch.Tensor]:
    """A hook on an embedding layer, whose factors are not modules: z is A's column for the token, and h is s B^T g."""

    def hook(layer: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        if not out.requires_grad:
            out = out.detach().requires_grad_()
        size = layer._get_embed_scale()  # noqa: SLF001  # PEFT's own factor of such embeddings, which has no other name
        s = layer.scaling[FIRST] * (1.0 if size is None else size)
        z = torch.nn.functional.embedding(inputs[0], layer.lora_embedding_A[FIRST].T)

        def take(g: torch.Tensor) -> None:
            sums.add(z, s * (g @ layer.lora_embedding_B[FIRST].to(g.dtype)))

        out.register_hook(take)
        return out

    return hook
