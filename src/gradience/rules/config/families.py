"""TGT006: targets that the named model's family does not have.

The names of the families' modules are data, in families.toml, so that no model has to be at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from gradience.errors import few
from gradience.io.reading import own_table
from gradience.rules import NEMOTRON, UNMATCHED, Observation, Unknown, cite
from gradience.rules.config.facts import AN_ADAPTER, LORA, Facts, LoraRule
from gradience.schema import Severity


class Family(NamedTuple):
    """Models that share their modules' names: a pattern of their names on the hub, and those names.

    `former` are the names in the code that the models came with, before transformers had their class.
    """

    name: str
    models: re.Pattern[str]
    modules: frozenset[str]
    former: frozenset[str] = frozenset()


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    models: str
    modules: str
    former: str = ""

    def made(self) -> Family:
        models = re.compile(self.models, re.IGNORECASE)
        return Family(self.name, models, frozenset(self.modules.split()), frozenset(self.former.split()))


FAMILIES: Final = tuple(
    entry.made() for entry in own_table(__file__, "families.toml", dict[str, list[_Entry]])["families"]
)


def family_of(model: str | None) -> Family | None:
    """The family of a model by its name, or None.

    >>> family_of("microsoft/phi-2").name, family_of("Qwen/Qwen2-VL-7B")
    ('Phi-2', None)
    """
    found = [family for family in FAMILIES if model and family.models.search(model)]
    return found[0] if found else None


def absent_targets(model: str | None, targets: list[str] | str | None) -> list[str]:
    """The names in a list of targets that no module of the model's family has; none if the family is not known."""
    family = family_of(model)
    if family is None or not isinstance(targets, list):
        return []
    return [name for name in targets if name.rpartition(".")[2] not in family.modules]


def _absent(facts: Facts) -> Iterator[Observation]:
    if facts.around.coverage is not None:
        raise Unknown("the base itself was looked at: see TGT002")
    model, targets = facts.config.model_name, facts.config.lora.target_modules
    family = family_of(model)
    if family is None:
        raise Unknown(f"{model or 'the model'} is in no family whose modules are listed here (--base looks at it)")
    if not isinstance(targets, list):
        raise Unknown("target_modules is no list of names")
    missed = absent_targets(model, targets)
    if facts.around.moment != "to come" and not family.former.isdisjoint(name.rpartition(".")[2] for name in missed):
        raise Unknown(f"the run has begun, and {few(missed)} may be of the code that {model} came with")
    left = [name for name in targets if name not in missed]
    if missed:
        yield Observation(
            f"models of the {family.name} family have no module called {few(missed)}: "
            + (f"only {few(left)} {'is' if len(left) == 1 else 'are'} adapted" if left else "PEFT refuses to start"),
            {"unmatched_targets": missed, "left": left, "family": family.name},
            severity=_severity(family, missed, left),
        )


def _severity(family: Family, missed: list[str], left: list[str]) -> Severity:
    """An error if PEFT refuses; info for a few names of other families, of which lists for any model are full."""
    if not left:
        return "error"
    misspelt = any(module in name.lower() for name in missed for module in family.modules if len(module) > 1)
    return "warning" if misspelt or len(missed) >= len(left) else "info"


RULES = (
    LoraRule(
        id="TGT006",
        severity="warning",
        title="targets that the model's family does not have",
        condition="a listed target is no module of the family that the model's name tells; an error if none of "
        "them is, and info if most are and the others misspell none",
        observe=_absent,
        needs=(LORA, AN_ADAPTER),
        confidence=0.85,
        signs=("foreign_targets",),
        evidence=(
            cite("transformers 5.24, models/*/modeling_*.py", "the names of the layers that the family defines"),
            UNMATCHED,
            NEMOTRON,
        ),
        rationale="PEFT passes over a name that matches no module, and the run adapts less than was meant.",
        action="name modules that the model has (model.named_modules()), or use 'all-linear'",
        scope="models of transformers, known by their name on the hub; a model's own code may name modules otherwise",
        verify="model.print_trainable_parameters(), and model.targeted_module_names",
        settings=("target_modules",),
    ),
)
