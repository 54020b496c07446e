"""What would be read if something had gone wrong: without one part of the adapter after the other, at other scales.

Every probe is a forward pass over the sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

from gradience.io import Progress
from gradience.models import FIRST, LoadedModel
from gradience.models.inputs import ModelInput
from gradience.models.reading import Reading, brought, read_loaded
from gradience.models.states import adapted, groups_of, rounded, scaled, with_scale, without
from gradience.schema.receipt import NoiseOf

Form: TypeAlias = tuple[str, bool, bool]

STORED: Final[Mapping[str, Form]] = {
    "q4_0": ("q4_0", True, True),
    "NF4 below the adapter": ("nf4", False, False),
    "NF4 after the merge": ("nf4", True, False),
    "q4_0, heads whole": ("q4_0", True, False),
    "int4 by 128 after the merge": ("int4, 128 to a scale", True, False),
    "int4 by 128 below the adapter": ("int4, 128 to a scale", False, False),
    "symmetric int4 by 128 after the merge": ("int4, 128 to a scale, symmetric", True, False),
    "FP4 below the adapter": ("fp4", False, False),
}
"""Forms in 4 bits in which models are served: the format, whether the adapter is merged first, and whether heads and
token embeddings are rounded too."""

_SCALES: Final = (0.125, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)


class Probes:
    """A base and adapter in memory, read in states that a mistake would leave them in.

    Args:
        loaded: the model.
        examples: the sequences.
        progress: called with (probes done, probes in all, name of the probe).
        foretold: modules that are known to be left out together, by what they are called.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        examples: Sequence[ModelInput],
        progress: Progress | None = None,
        foretold: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        self._loaded, self._examples = loaded, examples
        self._layers = adapted(loaded)
        self._shown = progress or (lambda _done, _total, _name: None)
        saved = [path for path, layer in self._layers.items() if hasattr(layer, "modules_to_save")]
        groups = {name: modules & self._layers.keys() for name, modules in (foretold or {}).items()}
        groups |= {
            name: own for name, own in groups_of(list(self._layers), saved).items() if own not in groups.values()
        }
        self.whole = frozenset(brought(loaded))
        """The modules without which the model is the base."""
        # Without all of them a classifier is the base: there its head is the adapter's.
        self.groups: dict[str, frozenset[str]] = {
            name: own for name, own in groups.items() if own and own != self.whole
        }

    def parts(self) -> dict[str, Reading]:
        """What is read without each group of the adapter's modules, by the group's name."""
        readings = {}
        for number, (name, paths) in enumerate(self.groups.items()):
            self._shown(number, len(self.groups), f"without {name}")
            readings[name] = self.without(paths)
        self._shown(len(self.groups), len(self.groups), "")
        return readings

    def stored(self) -> dict[str, Reading]:
        """What is read in each of the usual forms in 4 bits, by its name."""
        return {form: self.mistaken(form, frozenset(), 1.0) for form in STORED}

    def mistaken(self, form: str, missing: frozenset[str], factor: float) -> Reading:
        """What is read from a form without these modules, and with the update counted so many times."""
        self._shown(0, 1, form)
        to, merged, heads = STORED[form]
        with without(self._layers, missing), scaled(self._layers, factor):
            return self._read(rounded(self._loaded, to, merged=merged, heads=heads))

    def noises(self) -> dict[NoiseOf, Reading]:
        """What is read in bfloat16, and with weights of 8 bits."""
        formats: tuple[NoiseOf, ...] = ("bfloat16", "int8")
        return {to: self._read(rounded(self._loaded, to)) for to in formats}

    def without(self, paths: frozenset[str]) -> Reading:
        """What is read without these modules of the adapter."""
        return self._read(without(self._layers, paths))

    def scaled(self, factor: float) -> Reading:
        """What is read with the adapter's update counted so many times."""
        return self._read(scaled(self._layers, factor))

    def _read(self, state: AbstractContextManager[Any]) -> Reading:
        return read_loaded(self._loaded, self._examples, state=state)

    def factors(self) -> Mapping[float, str]:
        """The factors that mistakes of programs give, in words, and some between; none without LoRA layers."""
        return factors_of(self._loaded)


def factors_of(loaded: LoadedModel) -> dict[float, str]:
    """The factors to try on a model, in rising order, with the mistake that gives each; empty for the others."""
    lora = with_scale(adapted(loaded))
    if not lora:
        return {}
    names = dict.fromkeys(_SCALES, "")
    # Where modules have scales of their own, such as by alpha_pattern, no single factor stands for the mistake.
    if len({layer.scaling[FIRST] for layer in lora}) == 1:
        scaling, rank = float(lora[0].scaling[FIRST]), float(lora[0].r[FIRST])
        is_rooted = loaded.model.peft_config[FIRST].use_rslora
        names[scaling] = "the scale applied twice"
        names[1.0 / scaling] = "alpha / r left out"
        names[rank**-0.5 if is_rooted else rank**0.5] = (
            "alpha / r in place of alpha / sqrt(r)" if is_rooted else "alpha / sqrt(r) in place of alpha / r"
        )
    return {factor: names[factor] for factor in sorted(names) if factor != 1.0}
