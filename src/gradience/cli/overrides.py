"""Single settings given as options of ``check``; they win over every file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from gradience.configs.values import keyword, short_name
from gradience.errors import ConfigError
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot
from gradience.schema.scalars import TaskProfile, real

__all__ = ["Overrides"]

_EXPRESSION = set("()[]|*")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """The options.

    Parameters
    ----------
    lr:
        Peak learning rate.
    weight_decay:
        Weight decay.
    optimizer:
        For example adamw_torch.
    r:
        Rank.
    alpha:
        lora_alpha.
    targets:
        Target modules: names with commas between, or repeated; one expression; or all-linear.
    model:
        The base model's name.
    dataset:
        Data set.
    task_profile:
        Coarse kind of task.
    notes:
        Kept in the report.
    """  # noqa: D405, D411  # `notes` is an option here, not a section

    lr: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    r: int | None = None
    alpha: float | None = None
    targets: Annotated[list[str] | None, Parameter(negative=())] = None
    model: str | None = None
    dataset: str | None = None
    task_profile: TaskProfile | None = None
    notes: str | None = None

    def snapshot(self) -> ConfigSnapshot:
        """Return the settings given, as a configuration."""
        return ConfigSnapshot(
            model_name=short_name(self.model) if self.model else None,
            dataset_name=short_name(self.dataset) if self.dataset else None,
            task_profile=self.task_profile or "unknown",
            optimizer=OptimizerSnapshot(
                name=keyword(self.optimizer) if self.optimizer else None,
                lr=None if self.lr is None else real(self.lr),
                weight_decay=None if self.weight_decay is None else real(self.weight_decay),
            ),
            lora=LoraSnapshot(
                r=self.r,
                alpha=None if self.alpha is None else real(self.alpha),
                target_modules=_targets(self.targets),
            ),
            notes=self.notes,
        )


def _targets(given: list[str] | None) -> list[str] | str | None:
    if not given:
        return None
    if len(given) == 1 and ("," not in given[0] or set(given[0]) & _EXPRESSION):
        only = given[0].strip()
        return only if only == "all-linear" or set(only) & (_EXPRESSION | {"."}) else [only]
    names = [name.strip() for item in given for name in item.split(",") if name.strip()]
    if not names:
        raise ConfigError("--targets names no module", advice="for example --targets q_proj,v_proj")
    return names
