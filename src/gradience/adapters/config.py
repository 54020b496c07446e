"""Read the fields of `adapter_config.json` that decide what tensors mean, and apply PEFT's rule for rank and alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gradience.adapters.patterns import PatternTable
from gradience.errors import AdapterError
from gradience.io.reading import decode_json, read_small

ANALYSED: Final = frozenset({"LORA", "ADALORA", "LOHA", "LOKR", "VERA"})
"""The values of peft_type whose tensors are read as updates; of all others, PEFT's own merge gives the update."""

PROMPTS: Final = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"}
)
"""The values of peft_type that train inputs of the model or of its attention, and change no weight."""

UNMERGEABLE: Final = frozenset({"LILY", "POLY", "SHADOW", "XLORA"})
"""The values of peft_type that PEFT 0.21.2 cannot merge, because what they do depends on the input."""

LARGEST_CONFIG: Final = 5 << 20  # bytes: an EVA config with a pattern for each of 10 000 modules has 1 MiB
LARGEST_ALPHA: Final = 1e30
"""Largest |alpha| accepted: its square times that of float32 factors fits float64. LoRA's alphas are 1 to 10 000."""


class AdapterConfig(msgspec.Struct, kw_only=True, frozen=True):
    """The fields of PEFT's and MLX-LM's configs that decide what the tensors mean. Other keys are ignored.

    The defaults are PEFT's.
    """

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: Any = None  # of the base
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = True
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    alora_invocation_tokens: list[int] | None = None
    layer_replication: list[tuple[int, int]] | None = None
    ensure_weight_tying: bool = False
    use_qalora: bool = False
    qalora_group_size: int = 16
    use_bdlora: bool | dict[str, Any] | None = None
    kasa_config: dict[str, Any] | None = None
    arrow_config: dict[str, Any] | None = None
    alpha: float | None = None  # LoHa and LoKr
    init_r: int = 12  # AdaLoRA
    fine_tune_type: str | None = None  # MLX-LM, this and the next two
    lora_parameters: dict[str, Any] | None = None
    model: str | None = None


def config_bytes(path: Path) -> bytes:
    """The bytes of an adapter's configuration.

    Raises:
        AdapterError: the file cannot be read.
    """
    try:
        return read_small(path, most=LARGEST_CONFIG, what="an adapter config")
    except OSError as error:
        raise AdapterError(
            f"cannot read {path}: {error.strerror}",
            advice="scaling needs it: give it with --adapter-config, or save the adapter again",
        ) from error


def read_config(path: Path) -> AdapterConfig:
    """The adapter's configuration.

    Raises:
        AdapterError: the file is missing, not JSON, or a field has the wrong type.
    """
    return parse_config(config_bytes(path), str(path))


def parse_config(raw: bytes | str, where: str) -> AdapterConfig:
    """The configuration in a JSON document; `where` names the document in errors."""
    try:
        config = decode_json(raw, AdapterConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # A type that is not analysed may use our fields for other things (`r` of a prompt, `alpha` as a list).
        other = _of_another_type(raw)
        if other is None:
            raise AdapterError(f"{where} is not an adapter config: {error}", advice="give the right file") from error
        return other
    _bound_alphas(config, where)
    # AdaLoRA states its rank as init_r, and VeRA's is that of its tensors.
    if config.peft_type in {None, "LORA", "LOHA", "LOKR"} and config.r < 1:
        raise AdapterError(
            f"{where} is not an adapter config: r is {config.r}, expected at least 1", advice="give the right file"
        )
    return config


def _bound_alphas(config: AdapterConfig, where: str) -> None:
    alphas = {"lora_alpha": config.lora_alpha, "alpha": config.alpha or 0.0}
    alphas |= {f"alpha_pattern of {key[:60]!r}": alpha for key, alpha in (config.alpha_pattern or {}).items()}
    for name, alpha in alphas.items():
        if not abs(alpha) <= LARGEST_ALPHA:  # NaN neither
            raise AdapterError(
                f"{where}: {name} is {alpha:g}, over the limit of {LARGEST_ALPHA:g}", advice="correct the config"
            )


class _Types(msgspec.Struct):
    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    modules_to_save: list[str] | None = None


def _of_another_type(raw: bytes | str) -> AdapterConfig | None:
    """The fields that all types share, from a config of a type that is not analysed; None if its type is analysed.

    Such a config may use the other fields of `AdapterConfig` for something else.
    """
    try:
        types = decode_json(raw, _Types)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if types.peft_type.upper() in ANALYSED else AdapterConfig(**msgspec.structs.asdict(types))


class Scaling(NamedTuple):
    """A module's scaling by the config: scale = alpha / r, or alpha / sqrt(r) with rsLoRA."""

    alpha: float
    scale: float
    config_r: int
    alpha_pattern: str | None
    rank_pattern: str | None
    path: str


class ScalingRules:
    """PEFT's rule for rank and alpha by module. It remembers which patterns have matched."""

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        # AdaLoRA keeps lists of booleans under the same name; and a boolean is an int to isinstance.
        self._ranks = {k: v for k, v in (config.rank_pattern or {}).items() if type(v) is int}
        self._alphas = config.alpha_pattern or {}
        self._rank_table = PatternTable(self._ranks)
        self._alpha_table = PatternTable(self._alphas)
        self._used: set[tuple[int, str]] = set()
        self.contested: list[str] = []
        """Modules that match several keys with different values. PEFT sorts the keys when it saves a config, so the
        order in training is lost. `of` returns what PEFT applies on loading."""

    def of(self, name: str, r: int | None = None, *, default_alpha: float | None = None) -> Scaling:
        """The scaling of the module of that name.

        Args:
            name: the module's path as PEFT matches it, without `base_model.model.`.
            r: the rank on disk, which decides the scale; the config's rank is only reported beside it.
            default_alpha: alpha if no pattern matches, for types that keep it in another field.
        """
        rank_key = self._first(self._rank_table, self._ranks, name)
        alpha_key = self._first(self._alpha_table, self._alphas, name)
        config_r = self._config.r if rank_key is None else self._ranks[rank_key]
        default = self._config.lora_alpha if default_alpha is None else default_alpha
        alpha = default if alpha_key is None else self._alphas[alpha_key]
        rank = config_r if r is None else r
        size = math.sqrt(max(rank, 1)) if self._config.use_rslora else max(rank, 1)
        return Scaling(alpha, alpha / size, config_r, alpha_key, rank_key, name)

    def _first(self, table: PatternTable, values: Mapping[str, float], name: str) -> str | None:
        keys = table.matching(name)
        if not keys:
            return None
        # By table too, because both patterns may have the same key.
        self._used.update((id(table), key) for key in keys)
        if any(values[key] != values[keys[0]] for key in keys):
            self.contested.append(name)
        return keys[0]

    def unmatched(self) -> tuple[list[str], list[str]]:
        """The keys of rank_pattern and of alpha_pattern that have matched no module so far."""
        tables = (self._rank_table, self._alpha_table)
        ranks, alphas = ([key for key in table.keys if (id(table), key) not in self._used] for table in tables)
        return ranks, alphas
