"""The verb ``check``: read a configuration from files, objects and overrides, and report on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import msgspec

from gradience.configs import read_preferences
from gradience.configs.commands import Known, known_of, with_commands
from gradience.configs.document import (
    CONFIG_NAME,
    read_arguments,
    read_document,
    read_peft,
    read_peft_dir,
    read_peft_object,
    read_settings,
)
from gradience.configs.families import Dimensions, read_dimensions
from gradience.configs.files import HasToDict
from gradience.configs.settings import Layer, keys_of, line_of, stack, stated_fields
from gradience.configs.training import PICKLE_NAME, STATE_NAME, completed, read_training_dir, read_training_object
from gradience.configs.values import short_name
from gradience.errors import AdapterError, ConfigError, GradienceError, MissingBaseError
from gradience.folder import Documents, open_run
from gradience.folder.beside import base_of
from gradience.folder.found import ARCHIVE, weights_alone
from gradience.folder.prompts import PromptLink, commanded, prompt_links
from gradience.io import CHECKPOINT_PREFIX
from gradience.io.reading import real_path
from gradience.ranges import Positive, VerbOptions, Whole
from gradience.rules import excluded_rules, judge, without
from gradience.rules.between.prompts import PROMPT_RULES
from gradience.rules.between.rules import FILE_RULES
from gradience.rules.config import RULES, judge_config, settings_of, transformers_version
from gradience.rules.config.facts import CheckContext, Facts, Moved, quantities
from gradience.rules.config.serving import fates, known_engines, read_flags
from gradience.schema import Json, as_float
from gradience.schema.audit import Beside
from gradience.schema.document import Coverage, Finding, by_severity
from gradience.schema.events import ConfigSnapshot, LoraSnapshot
from gradience.schema.memory import Memory, Time
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport, DataReport, InputFile, SourceLocation

_NOT_CONFIGURATION = {"base", "settings", "data", "eval data", "tokenizer"}
_OF_CONFIGURATION = frozenset(rule.id for rule in RULES)
_TWO_ENDS = 2  # what was trained, and what is served
_STARTS = {"vllm": "vllm serve", "sglang": "sglang serve", "llamacpp": "llama-server"}
_YAML = frozenset({".yaml", ".yml"})
_OF_PROMPT = frozenset({"adapter", "config", "training"})  # roles of files beside which the prompt is looked for
_OF_FILES = frozenset((*(rule.id for rule in FILE_RULES), *(rule.id for rule in PROMPT_RULES)))
IDS = [*(rule.id for rule in RULES), *_OF_FILES]
"""The rules that a check of a configuration asks: of it, and of the files beside it."""
_BY_LINE = frozenset({".jsonl", ".ndjson"})

_LOGS = (STATE_NAME, "run.jsonl", "trainer_log.jsonl")
_WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapters.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
_ADAPTERS = ("adapter_model.safetensors", "adapters.safetensors")
_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".h5", ".msgpack")
_OF_A_RUN = (*_LOGS, "adapter_model.safetensors", "model.safetensors")
_BY_RUNS = frozenset({"adapter", "training"})  # roles of files that a run may have written beside its results
_MOST_NAMES = 5
_MOST_ENTRIES = 2000  # entries of the output folder that are examined


def _settings_of(run: Documents) -> Layer:
    """All settings of a run.

    Raises:
        ConfigError: it states none.
    """
    settings = run.settings
    if settings.place.path is None:
        fault, archive = run.log.fault, run.found.weights.reason
        reason = archive if archive.startswith(ARCHIVE) else run.log.reason
        message = f"{run.found.path}: {reason}" if fault is None else fault.message
        raise ConfigError(message, advice=f"give a folder with {STATE_NAME} or {CONFIG_NAME}")
    return settings.take()


def _adapter_of(run: Documents) -> Layer:
    """The adapter's config alone, beside the run's weights or in its last checkpoint.

    Raises:
        ConfigError: there is none, or it cannot be read.
        AdapterError: the weights are empty, because ZeRO-3 saved them without gathering.
    """
    weights, opened = run.found.path / "adapter_model.safetensors", run.adapter.held
    if weights.is_file() and (opened is None or weights not in opened.adapter.weights):
        from gradience.adapters.gathered import refuse_ungathered_file  # numpy, where weights lie

        refuse_ungathered_file(weights)
    return read_peft_dir(run.found.path) if run.config.place.path is None else run.config.take()


def _training_of(run: Documents) -> Layer:
    """The settings of a run without those of its adapter.

    Raises:
        ConfigError: it states none.
    """
    if run.settings.place.path is None:
        return read_training_dir(run.found.path)
    whole = run.settings.take()
    sources = tuple(source for source in whole.sources if source.role != "adapter")
    if not sources:
        return read_training_dir(run.found.path)
    config = msgspec.structs.replace(whole.config, model_name=None, lora=LoraSnapshot())
    return msgspec.structs.replace(whole, config=config, sources=sources)


Place = str | PathLike[str]
Settings = HasToDict | Mapping[str, Any]
SETTINGS = (HasToDict, Mapping)  # the same for isinstance


@dataclass(frozen=True, kw_only=True)
class CheckOptions(VerbOptions):
    """The sources of a configuration, of which a later one wins, and what it is judged for and by.

    Attributes:
        config: a Struct, or a mapping of settings of any shape, such as `{"lr": 1e-3, "lora": {"r": 8}}`.
        document: one file of any shape, or the folder a run left.
        peft_dir: a folder with an adapter config.
        training_dir: a folder with training arguments.
        peft: an adapter config: a file, its folder, a `peft.LoraConfig`, or a mapping of its settings.
        training: training arguments: a file, their folder, a `transformers.TrainingArguments` of any trainer, or a
            mapping of them.
        overrides: a Struct that wins over all of these.
        base: the base model, a folder or organisation/name in the hub's local cache. Its config.json and safetensors
            headers determine what the targets reach; no weight is read.
        task: what is trained: `sst2`, `sft`, `dpo`, ...
        serve: engines the adapter is meant for: vllm, sglang, ollama, llamacpp, tensorrt, lorax, mlx, peft,
            transformers; each with @VERSION if one is meant.
        server_flags: the flags that the server is started with, as one text.
        select: ids of rules, or beginnings of ids, to apply; all by default.
        ignore: ids of rules, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`. Its `select` and `ignore` apply if the
            options of that name are empty. If None, no file is looked for.
        max_length: tokens per sequence, where no training argument states them.
        memory: memory of the card, such as `24GiB`; a step that does not fit is a finding.
        seconds_per_step: of this configuration on the device that is meant, for the time of all planned steps; None to
            go by a log of the same base.
    """

    config: ConfigSnapshot | Mapping[str, Any] | None = None
    document: Place | None = None
    peft_dir: Place | None = None
    training_dir: Place | None = None
    peft: Place | Settings | None = None
    training: Place | Settings | None = None
    overrides: ConfigSnapshot | None = None
    base: Place | None = None
    task: str | None = None
    serve: Iterable[str] = ()
    server_flags: str = ""
    select: Iterable[str] = ()
    ignore: Iterable[str] = ()
    settings: Place | None = None
    max_length: Whole | None = None
    memory: str | None = None
    seconds_per_step: Positive | None = None

    def unwanted(self, ids: Sequence[str]) -> dict[str, str]:
        """The rules that are left out, each with its reason."""
        return excluded_rules(ids, select=self.select, ignore=self.ignore, settings=self.settings)

    @property
    def folders(self) -> list[Path]:
        """The given folders and files, beside which more may be found, such as a tokenizer."""
        return [Path(place) for place in (self.document, self.peft_dir, self.training_dir) if place is not None]

    @cached_property
    def runs(self) -> dict[Path, Documents]:
        """The runs that were opened, by the folders given."""
        return {}

    def run_of(self, folder: Path) -> Documents:
        """The run in a folder, opened once for all options that name it."""
        return self.runs.get(folder) or self.runs.setdefault(folder, open_run(folder))

    @property
    def held(self) -> dict[Path, dict[str, Json]]:
        """The training arguments of the runs that were opened, by their files."""
        parts = (run.training_fields for run in self.runs.values())
        return {part.place.path: part.held for part in parts if part.place.path is not None and part.held is not None}

    def adapter_in(self, folder: Path) -> Documents:
        """The run whose adapter is in a folder, if it was opened, else the adapter alone."""
        mine = (run for run in self.runs.values() if run.folders[:1] == [folder])
        return next(mine, None) or self.runs.setdefault(folder, Documents(weights_alone(folder)))

    def read(self) -> Layer:
        """Read all sources into one layer."""
        layers = (
            _given(self.config),
            _read(self.document, _settings_of, self.run_of, read_document),
            _read(self.peft_dir, _adapter_of, self.run_of, read_peft_dir),
            _read(self.training_dir, _training_of, self.run_of, read_training_dir),
            _object(self.peft, read_peft_object) or _read(self.peft, _adapter_of, self.run_of, read_peft),
            _object(self.training, read_training_object)
            or _read(self.training, _training_of, self.run_of, read_arguments),
            _given(self.overrides),
        )
        return stack(layer for layer in layers if layer is not None)

    @property
    def stated(self) -> frozenset[str]:
        """The settings that are given themselves, as options or in objects, and not by a file."""
        peft, training = _object(self.peft, read_peft_object), _object(self.training, read_training_object)
        layers = (_given(self.config), peft, training, _given(self.overrides))
        return frozenset().union(*(stated_fields(layer.config) for layer in layers if layer is not None))


class CheckKeywords(TypedDict, total=False):
    """`CheckOptions` as keywords, but for the configuration itself."""

    document: Place | None
    peft_dir: Place | None
    training_dir: Place | None
    peft: Place | Settings | None
    training: Place | Settings | None
    overrides: ConfigSnapshot | None
    base: Place | None
    task: str | None
    serve: Iterable[str]
    server_flags: str
    select: Iterable[str]
    ignore: Iterable[str]
    settings: Place | None
    max_length: int | None
    memory: str | None
    seconds_per_step: float | None


_DEFAULTS = CheckOptions()


def check_config(
    config: Place | ConfigSnapshot | Mapping[str, Any] | None = None,
    *,
    options: CheckOptions = _DEFAULTS,
    **keywords: Unpack[CheckKeywords],
) -> CheckReport:
    """Check a configuration by the rules. A later source wins over an earlier one.

    Args:
        config: one file of any shape, the folder of a run, a Struct, or a mapping of settings of any shape; it wins
            over that of `options`.
        options: the sources of the configuration, the base and the rules.
        keywords: single options by name, such as `peft_dir="adapter"`; they win over `options`.

    Raises:
        ConfigError: a source cannot be read, nothing was given, or a rule id is not known.
        AdapterError: the base cannot be read.
        TypeError: no option has such a name.
    """
    if isinstance(config, (str, PathLike)):
        options = replace(options, document=config)
    elif config is not None:
        options = replace(options, config=config)
    given = options.completed(keywords)
    unwanted = given.unwanted(IDS)
    whole = given.read()
    if whole.config == ConfigSnapshot():
        message = "nothing to check"
        raise ConfigError(
            message, advice="give a config file, --adapter, --training-dir, or settings such as --set lr=1e-4"
        )
    of_config = {rule: reason for rule, reason in unwanted.items() if rule in _OF_CONFIGURATION}
    report = judged(whole, given, unwanted=of_config, around=when_of(whole, given.stated))
    return with_files(report, given, whole, unwanted)


def with_files(
    report: CheckReport, given: CheckOptions, whole: Layer, unwanted: Mapping[str, str], rows: PromptLink | None = None
) -> CheckReport:
    """The report with what the rules on the files beside the configuration say: the adapter's, and the prompt."""
    of_files = {rule: reason for rule, reason in unwanted.items() if rule in _OF_FILES}
    known = [] if rows is None or not (rows.system or rows.form) else [rows]
    for engine in given.serve:
        command = f"{_STARTS.get(engine.partition('@')[0], '')} {given.server_flags}"
        known += commanded(command, Path(), f"--serve {engine}")
    return _with_prompt(_with_adapter(report, given, whole, of_files), given, whole, of_files, known)


def _with_prompt(
    report: CheckReport, given: CheckOptions, whole: Layer, unwanted: Mapping[str, str], known: Iterable[PromptLink]
) -> CheckReport:
    """The report with what the rules on the prompt say, if two files beside the configuration state something of it."""
    files = [Path(source.path) for source in whole.sources if source.role in _OF_PROMPT]
    places = [path.parent for path in files if path.is_file()]
    if whole.output_dir is not None:
        places += [place / whole.output_dir for place in places[:1]]
    base = None if given.base is None else Path(given.base)
    recipes = [path for path in files if path.suffix in _YAML]
    own = whole.base if any(source.role == "adapter" for source in whole.sources) else None
    links = prompt_links(
        dict.fromkeys(places), recipes=recipes, base=base, held=given.held, known=known, trained_on=own
    )
    if sum(1 + bool(link.hidden or link.ends) for link in links) < _TWO_ENDS:
        return report
    verdict = judge(PROMPT_RULES, links)
    findings, not_run = without(verdict.findings, verdict.not_run, unwanted)
    judged = len(PROMPT_RULES) - len({item.id for item in not_run})
    before = as_float(report.derived.get("rules_judged", 0.0))
    return msgspec.structs.replace(
        report,
        derived={**report.derived, "rules_judged": before + judged},
        findings=by_severity([*report.findings, *findings]),
        not_run=[*report.not_run, *not_run],
    )


def _with_adapter(report: CheckReport, given: CheckOptions, whole: Layer, unwanted: Mapping[str, str]) -> CheckReport:
    """The report with what the rules on an adapter's files say, if weights lie beside its config."""
    folder = next((Path(source.path).parent for source in whole.sources if source.role == "adapter"), None)
    if folder is None or not any((folder / name).is_file() for name in _ADAPTERS):
        return report
    from gradience.rules.between.gathered import gather  # numpy, where weights lie

    base = None if given.base is None else Path(given.base)
    try:
        verdict = judge(FILE_RULES, gather(given.adapter_in(folder), base=base))
    except AdapterError:  # damaged: gradience audit says how
        return report
    findings, not_run = without(verdict.findings, verdict.not_run, unwanted)
    judged = len(FILE_RULES) - len({item.id for item in not_run})
    return msgspec.structs.replace(
        report,
        derived={**report.derived, "rules_judged": len(RULES) - len({item.id for item in report.not_run}) + judged},
        findings=by_severity([*report.findings, *findings]),
        not_run=[*report.not_run, *not_run],
    )


def judged(
    whole: Layer,
    given: CheckOptions,
    *,
    unwanted: Mapping[str, str],
    around: CheckContext,
) -> CheckReport:
    """The report on a configuration that was read.

    Args:
        whole: the configuration.
        given: where it was read, and what it is judged for; its rules are not asked.
        unwanted: the rules to leave out, each with its reason.
        around: when the configuration is judged, and what is known of its run.
    """
    if given.base is None:
        return _judged(whole, given, unwanted=unwanted, around=around)
    from gradience.base.shapes import folder_of  # numpy: only those with a base pay for it

    name = Path(given.base)
    name = name.parent if name.name == "config.json" else name  # the one file of the base that is needed
    try:
        with folder_of(name) as (where, by_name):
            return _judged(whole, given, unwanted=unwanted, around=around, where=where, by_name=by_name)
    except MissingBaseError as error:
        advice = f"its config.json is enough: give its folder, or hf download {name} config.json"
        raise AdapterError(error.message, advice=advice) from None


def _judged(
    whole: Layer,
    given: CheckOptions,
    *,
    unwanted: Mapping[str, str],
    around: CheckContext,
    where: Path | None = None,
    by_name: str = "",
) -> CheckReport:
    config, versions = completed(whole, given.task), transformers_version()
    around, time = _served(around, given, whole), None
    around = gather_context(whole, config, around, given, base=where, transformers=versions)
    if where is None and given.memory is not None:
        raise ConfigError("--memory needs --base", advice="give the base: its config.json is enough")
    if where is not None:
        around = around._replace(memory=_memory(config, where, given, whole, around.coverage, by_name))
        time = _time(config, given)
    if (each := given.seconds_per_step) is not None:
        steps = config.training.planned_steps
        time = Time(seconds_per_step=each, steps=steps, seconds=None if steps is None else each * steps)
    named = (("base", given.base), ("settings", given.settings))
    sources = [*whole.sources, *(InputFile(role=role, path=str(path)) for role, path in named if path is not None)]
    verdict = judge_config(config, around=around, left_out=unwanted)
    n_judged = len(RULES) - len({item.id for item in verdict.not_run})
    return CheckReport(
        schema=CHECK_SCHEMA_ID,
        sources=sources,
        config=config,
        derived={**quantities(config), "rules_judged": n_judged},
        coverage=around.coverage,
        memory=around.memory,
        time=time,
        serving=list(fates(Facts(config, around=around))),
        findings=with_commands(verdict.findings, lambda: _known(config, given, whole)),
        not_run=verdict.not_run,
        readings=with_commands(verdict.readings, lambda: _known(config, given, whole)),
        unknown_keys=list(dict.fromkeys(whole.unknown_keys)),
    )


def facts_to_serve(adapter: Path, base: Path | None, *, engine: str, server_flags: str = "") -> Facts:
    """An adapter's settings and tensors as the rules on engines read them.

    Raises:
        ConfigError: its settings or the flags cannot be read, or the engine is not known.
        AdapterError: the base cannot be read.
    """
    given = CheckOptions(peft_dir=adapter, base=base, serve=[engine], server_flags=server_flags)
    whole, versions = given.read(), transformers_version()
    config, around = completed(whole), _served(CheckContext(), given, whole)
    where = None if base is None else Path(base)
    around = gather_context(whole, config, around, given, base=where, transformers=versions)
    return Facts(config, around=around)


def _known(config: ConfigSnapshot, given: CheckOptions, whole: Layer) -> Known:
    """What the words of commands stand for, by the adapter's config, the log and the options."""
    configs = [Path(source.path) for source in whole.sources if source.role == "adapter"]
    adapter = str(configs[-1].parent) if configs and configs[-1].name == CONFIG_NAME else None
    base = None if given.base is None else str(given.base)
    names = (whole.base, config.model_name)
    if adapter is None:
        around = Beside(base=base_of(names, Path(whole.sources[0].path).parent if whole.sources else None))
    else:
        around = given.adapter_in(Path(adapter)).beside(whole.base)
    return known_of(adapter, msgspec.structs.replace(around, base=base or around.base), rank=config.lora.r)


def _memory(
    config: ConfigSnapshot,
    base: Path,
    given: CheckOptions,
    whole: Layer,
    coverage: Coverage | None,
    by_name: str,
) -> Memory:
    from gradience.io import pretrained  # numpy: only those with a base pay for it
    from gradience.verbs.check.memory import foretell, parse_size, peft_fields  # the same

    adapter = given.peft if isinstance(given.peft, SETTINGS) else None
    fields = adapter if adapter is None or isinstance(adapter, Mapping) else adapter.to_dict()
    paths = [Path(source.path) for source in whole.sources if source.role == "adapter"]
    if fields is None and paths and paths[-1].name == CONFIG_NAME:
        try:
            fields = pretrained.refuse_foreign(dict(given.adapter_in(paths[-1].parent).config_fields.take()))
        except (GradienceError, ValueError):
            return Memory(reason=f"the adapter's {CONFIG_NAME} cannot be read, or would make PEFT load what it names")
        fields |= {} if given.overrides is None else peft_fields(given.overrides.lora)
    limit = None if given.memory is None else parse_size(given.memory)
    told = foretell(config, base=base, adapter=fields, length=given.max_length, limit=limit, coverage=coverage)
    if not by_name:
        return told
    return msgspec.structs.replace(
        told, assumes=[*told.assumes, f"the base's shape by its name ({by_name}), and the dtype of its weights"]
    )


def _time(config: ConfigSnapshot, given: CheckOptions) -> Time | None:
    folders = dict.fromkeys(given.folders)
    runs = [given.run_of(folder) for folder in folders if folder in given.runs or folder.name in _LOGS]
    if not any(run.log.held for run in runs):
        return None
    from gradience.verbs.check.time import foretell_time  # only those with a log pay for it

    return foretell_time(config, [run.log.held for run in runs if run.log.held is not None])


def _served(around: CheckContext, given: CheckOptions, whole: Layer) -> CheckContext:
    """The surroundings with the engines given, else those of the settings file, and with the tensors that they load.

    Raises:
        ConfigError: an engine is not known, or the server's flags are given without one.
    """
    names = list(given.serve)
    if not names and given.settings is not None:
        names = list(read_preferences(Path(given.settings)).serve)
    if given.server_flags and not names:
        raise ConfigError("--server-flags without --serve", advice="name the engine, such as --serve vllm")
    around = around._replace(engines=known_engines(names), flags=read_flags(given.server_flags))
    folder = next((Path(source.path).parent for source in whole.sources if source.role == "adapter"), None)
    if not names or folder is None or not any((folder / name).is_file() for name in _ADAPTERS):
        return around
    from gradience.verbs.check.serving import with_tensors  # numpy, where weights lie

    return with_tensors(around, folder)


_Runs: TypeAlias = Callable[[Path], Documents]


def _read(
    given: Place | Settings | None, of_run: Callable[[Documents], Layer], runs: _Runs, of_file: Callable[[Path], Layer]
) -> Layer | None:
    """The layer of a file, or of the run in a folder; None if no place is given."""
    if given is None or isinstance(given, SETTINGS):
        return None
    place = Path(given)
    # A log with few settings: most are in what its run left beside it. isdir never raises
    is_run = os.path.isdir(place) or place.name == STATE_NAME  # noqa: PTH112
    return of_run(runs(place)) if is_run else of_file(place)


def _object(given: Place | Settings | None, read: Callable[[Settings], Layer]) -> Layer | None:
    return read(given) if isinstance(given, SETTINGS) else None


def _given(config: object) -> Layer | None:
    if isinstance(config, Mapping):
        return read_settings(config)
    if not isinstance(config, ConfigSnapshot | None):
        message = f"expected a ConfigSnapshot or a mapping of settings, got {type(config).__name__}"
        raise ConfigError(message, advice="give files by name: document=, peft=, training=")
    return None if config is None else Layer(config=config)


def source_locations(report: CheckReport) -> list[SourceLocation | None]:
    """The source location of each finding, in order; None if no file was read."""
    files = [source for source in report.sources if source.role not in _NOT_CONFIGURATION]
    data = report.data
    return [
        _row(finding, data)
        if data is not None and finding.id not in _OF_CONFIGURATION | _OF_FILES
        else _place(finding, files)
        for finding in report.findings
    ]


def _row(finding: Finding, data: DataReport) -> SourceLocation:
    """The location of a finding on data; with the line of its first row if the file has one row per line.

    Rows of the evaluation set are lines of its file.
    """
    of_eval = "first_of_eval" in finding.values and data.eval_path is not None
    path = data.eval_path if of_eval and data.eval_path is not None else data.path
    first = finding.values.get("first_of_eval" if of_eval else "first")
    by_line = Path(path).suffix.lower() in _BY_LINE and isinstance(first, list) and first
    return SourceLocation(path, first[0] if by_line and first else None)


def _place(finding: Finding, files: list[InputFile]) -> SourceLocation | None:
    if not files:
        return None
    keys = [key for field in settings_of(finding) for key in keys_of(field)]
    for source in reversed(files):  # a later source wins
        line = line_of(Path(source.path), keys)
        if line is not None:
            return SourceLocation(source.path, line)
    return SourceLocation(files[0].path)


def when_of(whole: Layer, stated: frozenset[str] = frozenset()) -> CheckContext:
    """When the configuration is judged, by its files: a run leaves its configs beside its weights and its log.

    Args:
        whole: the configuration.
        stated: settings that are about a run to come, whatever the files say.
    """
    return _by_files(whole)._replace(stated=stated)


def _by_files(whole: Layer) -> CheckContext:
    if whole.log:
        return CheckContext(moment="logged", begun=whole.log)
    begun = ""
    for source in whole.sources:
        folder = Path(source.path).parent
        if source.role not in _BY_RUNS:
            continue
        log = next((name for name in _LOGS if (folder / name).is_file()), None)
        if log is not None:
            return CheckContext(moment="logged", begun=log)
        weights = next((name for name in _WEIGHTS if (folder / name).is_file()), "")
        begun = begun or weights or (PICKLE_NAME if source.path.endswith(PICKLE_NAME) else "")
    return CheckContext(moment="begun", begun=begun) if begun else CheckContext()


def gather_context(
    whole: Layer,
    config: ConfigSnapshot,
    around: CheckContext,
    given: CheckOptions,
    *,
    base: Path | None,
    transformers: str | None,
) -> CheckContext:
    """The surroundings of a configuration; those of the base only if a base is given.

    Raises:
        AdapterError: the base cannot be read.
    """
    keys = tuple(dict.fromkeys(whole.unknown_keys)) if whole.sources else None
    model = _model(whole, config, base)
    if model is not None and model.tied and around.groups is not None:
        from gradience.adapters.groups import on_tied_base  # numpy

        around = around._replace(groups=on_tied_base(around.groups))
    around = _output(whole, around._replace(unknown_keys=keys, model=model))
    return around if base is None else _with_base(around, config, base, given, transformers)


def _model(whole: Layer, config: ConfigSnapshot, base: Path | None) -> Dimensions | None:
    """What the base's config.json tells, if the base that was given, or that the configuration names, is a folder."""
    own = whole.base if whole.base and short_name(whole.base) == config.model_name else None
    place = base or (own and Path(own))
    try:
        return read_dimensions(place) if place and place.is_dir() else None
    except OSError:  # a name that is too long for a file
        return None


def _output(whole: Layer, around: CheckContext) -> CheckContext:
    place = whole.output_dir
    if place is None:
        return around
    try:
        inside = any(real_path(place) in real_path(source.path).parents for source in whole.sources)
        if inside:
            return around._replace(no_output="the configuration is read from the output folder itself")
        return around._replace(output=tuple(_held(Path(place))))
    except (OSError, ValueError, RuntimeError):
        return around._replace(no_output="the output folder cannot be looked into")


def _held(folder: Path) -> Iterator[str]:
    """The names of a run's files and checkpoints in a folder; none if the folder does not exist."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        # An output folder may hold more files than are worth a look.
        names = [entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
    files = sorted(name for name in names if name in _OF_A_RUN or name.startswith(CHECKPOINT_PREFIX))
    yield from files[:_MOST_NAMES]
    if len(files) > _MOST_NAMES:
        yield f"and {len(files) - _MOST_NAMES} more"


def _with_base(
    around: CheckContext, config: ConfigSnapshot, base: Path, given: CheckOptions, transformers: str | None
) -> CheckContext:
    from gradience.base.coverage import cover, stem_of, stem_of_targets  # imports numpy: only if a base is given
    from gradience.base.peft_emulation.layout import read_layout
    from gradience.base.peft_emulation.targets import NotFollowedError  # as above

    if config.lora.peft_type not in {None, "LORA"}:
        return around._replace(no_coverage=f"peft_type {config.lora.peft_type} is not LoRA: not counted")
    if config.extras.get("format") == "mlx-lm":
        return around._replace(no_coverage="MLX-LM counts its layers from the end: its targets are not followed")
    if _holds_config_alone(base):
        return around._replace(no_coverage="the base is a config.json alone: no safetensors header to count from")
    layout = read_layout(base, transformers=transformers, task_type=config.lora.task_type)
    saved = _saved_names(given)
    try:
        stems = stem_of(saved, layout) if saved else stem_of_targets(config.lora, layout)
        absent = frozenset() if stems is not None or layout.is_renamed else frozenset(saved - layout.sites.keys())
        around = around._replace(moved=None if stems is None else Moved(*stems, bool(saved)), absent=absent)
        coverage = cover(config, layout, base=Path(short_name(str(base))).name or str(base))
    except NotFollowedError as error:
        return around._replace(no_coverage=str(error))
    return _with_tokens(around, coverage, base, given.folders)


def _holds_config_alone(base: Path) -> bool:
    names = {entry.name for entry in base.iterdir()} if base.is_dir() else set()
    return "config.json" in names and not any(name.endswith(_OF_WEIGHTS) for name in names)


def _saved_names(given: CheckOptions) -> set[str]:
    """The modules named in the header of the adapter's weights; none if there are no weights that can be read."""
    from gradience.adapters.layout import module_path, parse_key  # as above

    folder = next((folder for folder in given.folders if (folder / _WEIGHTS[0]).is_file()), None)
    opened = None if folder is None else given.adapter_in(folder).adapter.held
    names = () if opened is None else opened.adapter.tensors
    return {module_path(key.module) for name in names if (key := parse_key(name)) is not None}


def _with_tokens(around: CheckContext, coverage: Coverage, base: Path, folders: Sequence[Path]) -> CheckContext:
    """Add the tokens that the run's tokenizer has and the base's tokenizer, or its embedding, lacks."""
    from gradience.base.coverage import added_tokens, read_added, read_vocabulary  # as above
    from gradience.base.weights import find_shards  # as above

    if coverage.vocabulary is not None:
        listed = {token: row for folder in folders for token, row in read_added(folder).items()}
        around = around._replace(new_rows=tuple(token for token, row in listed.items() if row >= coverage.vocabulary))
    run = next((vocabulary for folder in folders if (vocabulary := read_vocabulary(folder)) is not None), None)
    if run is None:
        return around._replace(coverage=coverage, no_tokenizers="no tokenizer lies beside the configuration")
    known = read_vocabulary(find_shards(base)[0].parent)
    if known is None:
        return around._replace(coverage=coverage, no_tokenizers="no tokenizer lies beside the base")
    return around._replace(coverage=msgspec.structs.replace(coverage, added_tokens=added_tokens(run, known)))
