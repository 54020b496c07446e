"""The command ``gradience check``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, NOT_DECIDED, tell
from gradience.configs.document import read_settings
from gradience.configs.settings import Layer, keys_of, nearest_known, split_names
from gradience.configs.values import Fields, flag, text, whole
from gradience.errors import ConfigError
from gradience.ranges import option_name
from gradience.schema import Json
from gradience.schema.events import ConfigSnapshot
from gradience.verbs.check.options import DataOptions, Samples
from gradience.verbs.check.run import CheckKeywords, CheckOptions, check_config

_EXPRESSION = set("()[]|*")


def _all_or_whole(value: Json) -> Samples:
    return "all" if value == "all" else whole(value)


_OF_DATA: Final[dict[str, Callable[[Json], object]]] = {  # settings of `DataOptions` that are no option by themselves
    "samples": _all_or_whole,
    "show_rows": flag,
    "template": lambda value: Path(text(value)),
}


def _given(single: list[str]) -> tuple[ConfigSnapshot, dict[str, Any]]:
    """The single settings: those of the configuration, and those of the data by their fields.

    Raises:
        ConfigError: one is no NAME=VALUE, not known, or of another kind.
    """
    pairs: dict[str, Json] = {}
    for item in single:
        name, sign, value = item.partition("=")
        if not sign:
            raise ConfigError(f"--set {item}: expected NAME=VALUE", advice="for example --set lr=1e-4")
        name = name.strip().replace("-", "_")
        pairs[name] = _targets(value) if name in keys_of("target_modules") else value
    fields = Fields(pairs, "--set")
    of_data = {name: fields.take([name], read) for name, read in _OF_DATA.items() if name in pairs}
    rest = {name: value for name, value in pairs.items() if name not in of_data}
    layer = read_settings(rest, where="--set") if rest else Layer()
    if layer.unknown_keys:
        name = layer.unknown_keys[0]
        meant = nearest_known(name)
        advice = f"did you mean {meant}?" if meant else "give a name that files have, such as lr or lora_alpha"
        raise ConfigError(f"--set: no setting is called {name}", advice=advice)
    return layer.config, of_data


def _targets(given: str) -> Json:
    """Module names with commas between; one expression, and the word all-linear, as they are."""
    if set(given) & _EXPRESSION or given == "all-linear" or ("." in given and "," not in given):
        return given
    if not (names := split_names(given)):
        raise ConfigError("--set targets names no module", advice="for example --set targets=q_proj,v_proj")
    return [*names]


def _progress() -> Callable[[int, int], None] | None:
    """A function that draws the rows read and the time left on stderr; None if that is no terminal."""
    draw = on_terminal("rows")
    return None if draw is None else lambda done, total: draw(done, total, "")


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Where the configuration is, beside the file or folder by itself, and what it is for.

    Parameters
    ----------
    task:
        What is trained: a dataset (sst2, glue/mnli) or an objective (sft, dpo, grpo, ...).
    peft_dir:
        A folder with an adapter_config.json, or that file.
    training_dir:
        A folder with a training_args.json, or a file of training arguments as JSON or YAML.
    memory:
        Memory of the card, such as 24GiB: does a step fit? Needs --base, of many open models by name alone.
    seconds_per_step:
        Time of a step where no log tells it: how long do all planned steps take?
    """

    task: str | None = None
    peft_dir: Annotated[Path | None, Parameter(name=("--adapter", "--peft-dir", "--peft"))] = None
    training_dir: Annotated[Path | None, Parameter(alias="--training")] = None
    base: opt.Base = None
    memory: str | None = None
    seconds_per_step: float | None = None

    def places(self) -> CheckKeywords:
        """These options as those of the library, which has a file apart from a folder."""
        places: CheckKeywords = {
            "task": self.task,
            "base": self.base,
            "memory": self.memory,
            "seconds_per_step": self.seconds_per_step,
        }
        if self.peft_dir is not None:
            places["peft" if _is_file(self.peft_dir) else "peft_dir"] = self.peft_dir
        if self.training_dir is not None:
            places["training" if _is_file(self.training_dir) else "training_dir"] = self.training_dir
        return places


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises if a name is too long


_CONFIG = ConfigOptions()


_NO_DATA = DataOptions()


def check(
    config: Path | None = None,
    /,
    *,
    sources: Annotated[ConfigOptions, opt.RECORD] = _CONFIG,
    single: Annotated[opt.Strings, Parameter(name="--set")] = None,
    data_options: Annotated[DataOptions, opt.RECORD, Parameter(group="Data")] = _NO_DATA,
    serve: opt.Strings = None,
    server_flags: opt.ServerFlags = "",
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Validate a PEFT and training configuration before burning compute.

    Later sources win: config, then folders, then files, then --set. With --base the report counts what the
    targets reach, from config.json and safetensors headers; no weights are loaded. With --data the report covers what
    the loss sees of a data set, tokenised as its trainer would; with a configuration or without one.

    Parameters
    ----------
    config:
        One JSON or YAML file of any shape: canonical, flat, PEFT's, TrainingArguments', or a run.jsonl; or the
        output folder of a run.
    single:
        NAME=VALUE, a single setting, as files have it: lr, r, alpha, num_labels, batch_size, ..., or targets with
        commas between. Of --data: samples (10000, or all), show_rows (the text of rows in findings), template (a file).
        May be repeated.
    serve:
        Engines the adapter is meant for, separated by commas: vllm, sglang, ollama, llamacpp, tensorrt, lorax,
        mlx, peft; each as ENGINE or ENGINE@VERSION. Reports what each does with every group of tensors.
    server_flags:
        The flags that the server is started with, as one text: '--max-lora-rank 16'.
    """
    resolved = options.resolved()
    overrides, of_data = _given(single or [])
    given = CheckOptions(
        document=config, overrides=overrides, serve=serve or (), server_flags=server_flags, **resolved.rules
    )
    given = given.completed({**sources.places(), "max_length": data_options.max_length})
    if data_options.data is None:
        alone = {"max_length"} if sources.base is not None else set()  # the memory of a step needs it too
        names = [each.name for each in fields(data_options) if getattr(data_options, each.name) != each.default]
        options_alone = [option_name(name) for name in names if name not in alone]
        if without := [*options_alone, *(f"--set {name}" for name in of_data)]:
            raise ConfigError(
                f"{without[0]} without --data", advice="give --data FILE, or --data recipe with --training"
            )
        report = check_config(options=given)
    else:
        from gradience.verbs.check.data import check_data  # only those with data pay for it

        data_options = replace(data_options, **of_data)
        report = check_data(options=data_options, check=given, progress=_progress())
    from gradience.verbs.check.run import source_locations  # the same
    from gradience.verbs.check.view import check_text  # after the check: --help needs none of it

    shown = resolved.show(
        report,
        lambda it: check_text(it, verbose=verbose),
        report.findings,
        groups=("config", "base", "serve", "between", *(("data",) if report.data is not None else ())),
        locations=lambda: source_locations(report),
        not_run=report.not_run,
    )
    if shown != DONE or resolved.fail_on is None or given.memory is None or report.memory is None:
        return shown
    if not report.memory.reason:
        return DONE
    if resolved.format != "text":
        tell(f"gradience: memory unknown: {report.memory.reason}")
    return NOT_DECIDED
