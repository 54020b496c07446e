"""The command ``gradience check``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter

from gradience.cli import options as opt
from gradience.cli.bar import on_terminal
from gradience.configs.values import Malformed, plain, whole
from gradience.errors import ConfigError
from gradience.judge.check import CheckKeywords, CheckOptions, check_config
from gradience.judge.check.options import DataOptions
from gradience.schema import Json, real
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot
from gradience.schema.reports import CheckReport

T = TypeVar("T")

_EXAMPLES = 10  # rows of the page
_EXPRESSION = set("()[]|*")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Single settings, which win over those of the files.

    Parameters
    ----------
    lr:
        Peak learning rate.
    r:
        Rank.
    alpha:
        lora_alpha.
    targets:
        Target modules: names with commas between, or repeated; one expression; or all-linear.
    """

    lr: float | None = None
    r: int | None = None
    alpha: float | None = None
    targets: opt.Strings = None

    def snapshot(self) -> ConfigSnapshot:
        """Return the settings given, as a configuration."""
        return ConfigSnapshot(
            optimizer=OptimizerSnapshot(lr=None if self.lr is None else real(self.lr)),
            lora=LoraSnapshot(
                r=_read("--r", whole, self.r),
                alpha=None if self.alpha is None else real(self.alpha),
                target_modules=_targets(self.targets),
            ),
        )


def _progress() -> Callable[[int, int], None] | None:
    """A function that draws the rows read and the time left on stderr; None if that is no terminal."""
    draw = on_terminal("rows")
    return None if draw is None else lambda done, total: draw(done, total, "")


def _with_page(options: _DataOptions, given: CheckOptions) -> CheckReport:
    """Check a data set and write its page; a name that is taken is refused before any work."""
    from gradience.io.atomic import refuse_file
    from gradience.judge.check.data import check_data
    from gradience.report import write_page  # matplotlib

    html = options.html or Path()
    refuse_file(html, force=options.force)
    asked = replace(options, worst=options.worst or _EXAMPLES)
    report = check_data(options=asked, check=given, progress=_progress())
    sources = [Path(source.path) for source in report.sources]
    write_page(report, html, sources=sources, force=options.force)
    return report


def _read(option: str, read: Callable[[Json], T], value: Json) -> T | None:
    """Return an option's value, parsed as a file's value is; None if it is empty or was not given."""
    if value is None or value == "":
        return None
    try:
        return read(value)
    except Malformed as error:
        raise ConfigError(f"{option}: expected {error}, got {plain(value)}", advice="correct the option") from None


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
        Memory of the card, such as 24GiB: does a step fit? Needs --base.
    """

    task: str | None = None
    peft_dir: Annotated[Path | None, Parameter(alias="--peft")] = None
    training_dir: Annotated[Path | None, Parameter(alias="--training")] = None
    base: opt.Base = None
    memory: str | None = None

    def places(self) -> CheckKeywords:
        """These options as those of the library, which has a file apart from a folder."""
        places: CheckKeywords = {"task": self.task, "base": self.base, "memory": self.memory}
        if self.peft_dir is not None:
            places["peft" if _is_file(self.peft_dir) else "peft_dir"] = self.peft_dir
        if self.training_dir is not None:
            places["training" if _is_file(self.training_dir) else "training_dir"] = self.training_dir
        return places


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises if a name is too long


_CONFIG = ConfigOptions()
_NO_OVERRIDES = Overrides()


@dataclass(frozen=True, kw_only=True)
class _DataOptions(DataOptions):
    """The options of --data, and its page.

    Parameters
    ----------
    html:
        Page to write as well: histograms, and ten rows as the model sees them.
    force:
        Replace the page if it is there.
    """

    packing: Annotated[bool | None, opt.LIBRARY_ONLY] = None
    seed: opt.Seed = 0
    worst: Annotated[int, opt.LIBRARY_ONLY] = 0
    show_rows: opt.Flag = False  # which has no --no-show-rows
    html: Path | None = None
    force: opt.Flag = False


_NO_DATA = _DataOptions()


def check(
    config: Path | None = None,
    /,
    *,
    sources: Annotated[ConfigOptions, opt.RECORD] = _CONFIG,
    overrides: Annotated[Overrides, Parameter(name="*")] = _NO_OVERRIDES,
    data_options: Annotated[_DataOptions, opt.RECORD, Parameter(group="Data")] = _NO_DATA,
    serve: opt.Strings = None,
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Validate a PEFT and training configuration before burning compute.

    Later sources win: config, then folders, then files, then single settings. With --base the report counts what the
    targets reach, from config.json and safetensors headers; no weights are loaded. With --data the report covers what
    the loss sees of a data set, tokenised as its trainer would; with a configuration or without one.

    Parameters
    ----------
    config:
        One JSON or YAML file of any shape: canonical, flat, PEFT's, TrainingArguments', or a run.jsonl; or the
        output folder of a run.
    serve:
        Engines the adapter is meant for, separated by commas: vllm, sglang, ollama, llamacpp, tensorrt, lorax,
        slora, mlx, peft, hotswap. Reports what each will make of it.
    """
    resolved = options.resolved()
    given = CheckOptions(document=config, overrides=overrides.snapshot(), serve=serve or (), **resolved.rules)
    given = given.completed({**sources.places(), "max_length": data_options.max_length})
    if data_options.data is None:
        alone = {"max_length"} if sources.base is not None else set()  # the memory of a step needs it too
        names = [each.name for each in fields(data_options) if getattr(data_options, each.name) != each.default]
        without = (name for name in names if name not in alone)
        if (name := next(without, None)) is not None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} without --data", advice="give --data FILE, or --data recipe with --training")
        report = check_config(options=given)
    else:
        from gradience.judge.check.data import check_data  # only those with data pay for it

        if data_options.html is not None:
            report = _with_page(data_options, given)
        else:
            report = check_data(options=data_options, check=given, progress=_progress())
    from gradience.judge.check import source_locations  # the same
    from gradience.render.check import check_text  # after the check: --help needs none of it

    return resolved.show(
        report,
        lambda it: check_text(it, verbose=verbose),
        report.findings,
        groups=("config", "base", "serve", "data") if report.data is not None else ("config", "base", "serve"),
        locations=lambda: source_locations(report),
        not_run=report.not_run,
    )
