"""How much an adapter changes, and what it was not trained for, measured without a benchmark.

The outputs of the base and of the base with the adapter are compared on texts of the adapter's own task and on others.
The same is read with the adapter at lower scales, and without each group of its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.errors import AdapterError, ConfigError
from gradience.io import PathLike, Progress
from gradience.models.inputs import digest_of, read_inputs
from gradience.models.sums import Sums, estimate
from gradience.schema.drift import DriftReport, Lowered, TextsChanged
from gradience.verbs.bench.options import DriftOptions

if TYPE_CHECKING:
    from gradience.models import LoadedModel

FACTORS: Final = (0.9, 0.8, 0.7, 0.6, 0.5)
LEAST: Final = 8  # texts; the interval is by drawing from them
GENERAL: Final = Path(__file__).with_name("general.txt")
"""The built-in texts: sentences on many subjects, three lines of code, three sentences in other languages."""

_DEFAULTS: Final = DriftOptions()

State = Callable[[], AbstractContextManager[Any]]


def measure_drift(
    adapter: PathLike,
    base: PathLike,
    *,
    texts: PathLike | None = None,
    elsewhere: PathLike | None = None,
    options: DriftOptions = _DEFAULTS,
    progress: Progress | None = None,
) -> DriftReport:
    """Return how much an adapter changes the outputs on texts of its own task, and on others.

    Args:
        adapter: the folder that PEFT saved.
        base: the base model: a folder, or organisation/name in the hub's local cache.
        texts: rows of the adapter's task that it was not trained on, as for `gradience resize --data`.
            Without them no gain is measured.
        elsewhere: rows of what should not change; None for the built-in sentences.
        options: how many texts, and the seed of their choice.
        progress: called with (states read, states in all, name of the state).

    Raises:
        AdapterError: base or adapter cannot be read, the adapter cannot be switched off, or an output is not finite.
        ConfigError: a file cannot be read, or has too few different texts.
        GradienceError: torch, transformers or PEFT is not installed.
        OptionError: an option is out of its range.
    """
    from gradience.models import load_model  # torch, late

    options.refuse_bad()
    loaded = load_model(base, adapter)
    states = _states(loaded)
    own = None if texts is None else _Texts(loaded, texts, options)
    other = _Texts(loaded, elsewhere or GENERAL, options)
    readings: list[_StateReading] = []
    for number, (one, state) in enumerate(states):
        if progress is not None:
            progress(number, len(states), one.name)
        readings.append(_StateReading(None if own is None else own.read(state), other.read(state)))
    if progress is not None:
        progress(len(states), len(states), "")
    whole = readings[0]
    gains = [_gains(own, reading) for reading in readings]
    # A share of a gain that may be none has no meaning.
    has_gain = own is not None and bool(gains[0].any()) and estimate(gains[0], own.base.known).low > 0.0
    lowered = [
        msgspec.structs.replace(
            one,
            gain_kept=estimate(gain, gains[0]) if has_gain else None,
            drift_left=estimate(reading.other.kl, whole.other.kl) if whole.other.kl.any() else None,
        )
        for (one, _), reading, gain in zip(states[1:], readings[1:], gains[1:], strict=True)
    ]
    return DriftReport(
        adapter=str(adapter),
        base=str(base),
        task=loaded.task,
        texts="" if texts is None else str(texts),
        elsewhere="" if elsewhere is None else str(elsewhere),
        seed=options.seed,
        own=None if own is None or whole.own is None else own.changed(whole.own),
        other=other.changed(whole.other),
        scales=[one for one in lowered if one.factor is not None],
        groups=[one for one in lowered if one.factor is None],
        notes=_notes(loaded, own, other, has_gain=has_gain),
    )


def _states(loaded: LoadedModel) -> list[tuple[Lowered, State]]:
    """The states to read: the adapter first, then at lower scales, then without each group of its modules.

    Raises:
        AdapterError: the adapter changes no layer, so that it cannot be switched off.
    """
    from gradience.models.reading import brought  # torch, late
    from gradience.models.states import groups_of, scaled, with_scale, without  # the same

    layers = brought(loaded)
    if not layers:
        raise AdapterError(
            "this adapter changes no layer of the base, so base and adapter cannot be told apart in one model",
            advice="give an adapter of LoRA's family",
        )
    saved = [path for path, layer in layers.items() if hasattr(layer, "modules_to_save")]
    groups = groups_of(list(layers), saved, each_layer=False)
    factors = FACTORS if with_scale(layers) else ()
    return [
        (Lowered(name="the adapter"), nullcontext),
        *((Lowered(name=f"alpha x {factor:g}", factor=factor), partial(scaled, layers, factor)) for factor in factors),
        *((Lowered(name=name, modules=len(paths)), partial(without, layers, paths)) for name, paths in groups.items()),
    ]


class _StateReading(NamedTuple):
    """One state, read on both files; on own texts, where there are some."""

    own: Sums | None
    other: Sums


class _Texts:
    """The texts of one file, and what the base says to them.

    Raises:
        ConfigError: the file cannot be read, or has too few different texts.
    """

    def __init__(self, loaded: LoadedModel, place: PathLike, options: DriftOptions) -> None:
        from gradience.models.outputs import HeldOut  # torch, late
        from gradience.models.reading import as_base, window  # the same

        inputs = read_inputs(place, loaded, most=options.rows, seed=options.seed)
        # Texts that differ later may be the same in the part that is read.
        self.examples = list(dict.fromkeys(window(example) for example in inputs.examples))
        if len(self.examples) < LEAST:
            raise ConfigError(
                f"{place} has {len(self.examples)} different texts that can be used, expected at least {LEAST}",
                advice=f"{options.rows} are read where there are so many; they need no labels",
            )
        as_it_was = partial(as_base, loaded)
        self._held_out = HeldOut(loaded, self.examples, as_it_was)
        self.base = self.read(as_it_was)

    def read(self, state: State) -> Sums:
        """Read the model in a state.

        Raises:
            AdapterError: an output is not finite.
        """
        sums = self._held_out.sums(state)
        if not sums.finite:
            raise AdapterError("the model's outputs are not finite", advice="check the weights of base and adapter")
        return sums

    def changed(self, read: Sums) -> TextsChanged:
        """How a state differs from the base."""
        return TextsChanged(
            texts=len(self.examples),
            predictions=int(read.predictions.sum()),
            digest=digest_of(self.examples),
            kl=estimate(read.kl, read.predictions),
            flips=float(read.flips.sum() / read.predictions.sum()),
            loss=estimate(read.loss - self.base.loss, read.known) if read.known.any() else None,
        )


def _gains(own: _Texts | None, reading: _StateReading) -> npt.NDArray[np.float64]:
    """The fall of the loss from the base's, by text; nothing without own texts."""
    return np.zeros(0) if own is None or reading.own is None else own.base.loss - reading.own.loss


def _notes(loaded: LoadedModel, own: _Texts | None, other: _Texts, *, has_gain: bool) -> list[str]:
    notes = []
    if loaded.task != "causal-lm":
        notes.append("Base and adapter are both read with the adapter's head, since the base has none.")
    if own is None:
        return [*notes, "No gain is given: --data FILE, such as the evaluation set, has texts of the adapter's task."]
    if shared := len({example.ids for example in own.examples} & {example.ids for example in other.examples}):
        notes.append(f"{shared} texts are in both files: what is elsewhere is not told apart from what is own.")
    if not own.base.known.any():
        notes.append("No gain is given: the rows of --data have no label.")
    elif not has_gain:
        notes.append("No gain is given: that the adapter lowers the loss on --data could not be told from chance.")
    return notes
