"""Rules between the files of an adapter: what was trained and what was saved, what was saved and what loads it.

`Parts` is the input of them all: an adapter's config and the header of its weights, and what lies beside them. A part
that is not there is None or empty, and the rules that need it are not judged. `gradience audit` and `diagnose` ask all
of these rules, `gradience check --peft-dir` those that need no number of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from gradience.rules import Rule, premise
from gradience.schema import Json
from gradience.schema.audit import ModuleAudit
from gradience.schema.document import RuleGroup

if TYPE_CHECKING:
    from gradience.base.peft_emulation.loading import Loading, Misnaming

HEADS: Final = ("score", "classifier", "qa_outputs", "classification_head", "v_head", "value_head", "reward_head")
"""Names of heads that a task adds to a model; their numbers are random until they are trained."""

SHOWN: Final = 4  # names in a message


class CheckpointFiles(NamedTuple):
    """A checkpoint of the run: its files, and whether its weights are those of the one before, byte by byte."""

    name: str
    files: frozenset[str]
    repeats: bool = False


class SavedState(NamedTuple):
    """What an optimizer.pt tells: its name below the run's folder, and the step that the checkpoint is of."""

    name: str
    at: int | None = None
    """None if the folder's name has no step."""
    steps: int | None = None
    """What the optimizer counted itself."""
    tensors: int = 0
    broken: Mapping[str, int] = {}
    """How many of its averages, by name, are not finite."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An adapter's documents, as far as they were read.

    Attributes:
        format: the format of the weights.
        tensors: shape and dtype by name, from the header of the weights.
        metadata: that of the weights' header.
        config: adapter_config.json as it stands; None without one.
        settings: the training arguments beside the adapter, as they stand; empty without any.
        base: the base's config.json as it stands; None if no base is at hand.
        misnamed: tensors whose names PEFT's loader does not look for, by what is wrong with them.
        loading: the modules beside those of the base; None if that cannot be told.
        no_loading: the reason why it cannot be told.
        untargeted: modules in the file that the config's own targets do not match; None if that cannot be told.
        modules: the audit's rows; None if no number was read.
        zeros: share of exact zeros in lora_B, of 16-bit factors; None if it was not counted.
        files: names of the files beside the weights.
        checkpoints: those of the run, in order.
        optimizer: the optimizer's state; None, with `no_optimizer`, if it was not read.
        added: tokens of the tokenizer beside the adapter that its base's tokenizer lacks, or None if one of both is not
            there; with `last_token`, the largest id.
    """

    format: str = "peft"
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Json] | None = None
    settings: Mapping[str, Json] = field(default_factory=dict)
    base: Mapping[str, Json] | None = None
    misnamed: Mapping[Misnaming, Sequence[str]] = field(default_factory=dict)
    loading: Loading | None = None
    no_loading: str = "no config of the base is at hand (--base)"
    untargeted: tuple[str, ...] | None = None
    modules: Sequence[ModuleAudit] | None = None
    zeros: float | None = None
    files: frozenset[str] = frozenset()
    checkpoints: tuple[CheckpointFiles, ...] = ()
    optimizer: SavedState | None = None
    no_optimizer: str = "the numbers were not read"
    added: tuple[str, ...] | None = None
    last_token: int | None = None


@premise("PEFT's adapter_config.json describes the adapter")
def of_peft(parts: Parts) -> str | None:
    """Need of a rule on what PEFT loads."""
    if parts.format != "peft":
        return f"it is in {parts.format}'s format, not PEFT's"
    return None if parts.config is not None else "no adapter_config.json lies beside the weights"


@premise("the numbers of the weights were read")
def measured(parts: Parts) -> str | None:
    """Need of a rule on numbers."""
    return None if parts.modules else "no module was measured"


@dataclass(frozen=True, kw_only=True)
class BetweenRule(Rule[Parts]):
    """A rule on several files of an adapter."""

    groups: tuple[RuleGroup, ...] = ("between",)
