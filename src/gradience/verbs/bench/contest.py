"""The entrants of a bench and their scores: score adapters task by task, keep each evaluation, and make a report.

Candidates are resized copies of an adapter, made by their names. Two anchors give the numbers a scale: the adapter
without its update, and with its update shuffled. The anchors keep the adapter's heads, biases and everything else that
is not a LoRA factor, so that only the update differs. Each entrant is kept in a folder of the store and is not made
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np

from gradience.adapters.layout import Array
from gradience.adapters.open import open_adapter
from gradience.adapters.pairs import LoraPair
from gradience.base.weights import find_shards, identity
from gradience.errors import AdapterError, GradienceError, require
from gradience.io import PathLike, Progress
from gradience.io.reading import real_path
from gradience.io.safetensors import TensorSource, Together, copied, planned
from gradience.rewriting.sides import open_stored
from gradience.rewriting.writing import PEFT_METADATA, Changes, NewAdapter, SourceFiles, provenance_of, write_adapter
from gradience.schema.compare import BenchMetric, BenchReport
from gradience.telemetry.redact import hide_in
from gradience.verbs.bench.evaluators import Command, Evaluator
from gradience.verbs.bench.judge import BASE, Contender, LossRule, Task, judge, tolerance_of
from gradience.verbs.bench.options import BenchOptions
from gradience.verbs.bench.store import BenchStore, Evaluation, adapter_digest, file_hash, refusing
from gradience.verbs.bench.trial import CAP, CONFIDENCE, BuiltIn, ModelEvaluator, default_metric
from gradience.verbs.resize.run import resize_adapter
from gradience.verbs.resize.subject import resizable_pairs

Factors: TypeAlias = tuple[Array, Array]

SHUFFLED: Final = "shuffled"
FULL: Final = "full"
ALWAYS: Final = (FULL, BASE, SHUFFLED)
DEFAULT_KL: Final = ("kl:.003", "kl:.01")
_GRAMMAR: Final = "full, base, shuffled, p90, svd:RANK, energy:SHARE, params:N, kl:NATS or adapter:FOLDER"
_KINDS: Final[Mapping[str, tuple[str, Callable[[str], float], str]]] = {
    "svd": ("rank", int, "the best approximation of rank {}"),
    "energy": ("energy", float, "singular values with {} of the energy"),
    "params": ("max_params", int, "at most {} parameters"),
    "kl": ("kl", float, "the smallest with measured KL <= {}"),
}
"""Kinds of candidates that `resize_adapter` makes: its criterion, the criterion's type, and words for the result."""


def cap_of(options: BenchOptions, metric: str) -> float | None:
    """The most that one example counts; None for a metric of the user's own without `cap`."""
    return CAP if options.cap is None and metric == "loss" else options.cap


def write_without_update(adapter: Path, out: Path) -> None:
    """Write the adapter with every lora_B zero, so that any program that loads adapters can evaluate the base."""
    _write(adapter, out, "zero", lambda b, a: (np.zeros_like(b), a))


def write_shuffled(adapter: Path, out: Path, *, seed: int) -> None:
    """Write the adapter with each update's rows and columns permuted.

    All singular values and norms stay; what the directions had learnt is lost.
    """
    random = np.random.default_rng(seed)
    _write(adapter, out, f"shuffled, seed {seed}", lambda b, a: (_permuted(random, b, 1), _permuted(random, a, 2)))


def write_scaled(adapter: Path, out: Path, *, factor: float) -> None:
    """Write the adapter with alpha times a factor; its tensors are copied bit for bit."""
    _write(adapter, out, f"alpha x {factor:g}", None, alpha=factor)


def _permuted(random: np.random.Generator, values: Array, axis: int) -> Array:
    return np.take(values, random.permutation(values.shape[axis]), axis=axis)


def _write(
    adapter: Path, out: Path, what: str, change: Callable[[Array, Array], Factors] | None, *, alpha: float = 1.0
) -> None:
    """Write the adapter with its factors b (E, out, r) and a (E, r, in) changed.

    Raises:
        AdapterError: it is not an adapter as PEFT saves one, or its tensors are not all understood.
        OutputError: the folder cannot be written.
    """
    stored = open_stored(adapter)
    source, opened = stored.tensors, stored.adapter
    if not stored.files.config.is_file():
        raise AdapterError(f"{adapter} is not a folder that PEFT saved", advice="see 'gradience convert'")
    new = {}
    layouts = [pair.layout for pair in resizable_pairs(opened)]
    if change is not None:
        for layout in layouts:
            loads = Together(partial(_changed, layout, source, change))
            for name in (layout.a_name, layout.b_name):
                info = source.tensors[name]
                new[name] = planned(name, info.dtype, info.shape, loads.taking(name))
    tensors = [new.get(name) or copied(source, name) for name in source.tensors]
    sources = SourceFiles(stored.paths)
    record = partial(provenance_of, "bench", sources, {"variant": what}, Changes([]))
    config = _scaled(stored.raw, opened.config.lora_alpha, alpha)
    write_adapter(out, NewAdapter(tensors, config, source.metadata or PEFT_METADATA), record, sources=sources)


def _changed(layout: LoraPair, source: TensorSource, change: Callable[[Array, Array], Factors]) -> dict[str, Array]:
    b, a = layout.joined(*change(*layout.read(source)), layout.rank)
    return {layout.a_name: a, layout.b_name: b}


def _scaled(config: dict[str, Any], own: float, factor: float) -> dict[str, Any]:
    if factor == 1.0:
        return config
    pattern = {key: value * factor for key, value in (config.get("alpha_pattern") or {}).items()}
    return {**config, "lora_alpha": own * factor, "alpha_pattern": pattern}


class Entry(NamedTuple):
    """A task with its data and its entrants; the first entrant is the reference. `alone` is as of `Task`."""

    name: str
    data: Path | None
    entrants: Sequence[Contender]
    alone: Mapping[str, str] | None = None


def anchors(store: BenchStore, adapter: Path, *, seed: int) -> list[Contender]:
    """The adapter without its update, and with its update shuffled."""
    source = adapter_digest(adapter)
    zero = store.made(BASE, {"of": source}, lambda out: write_without_update(adapter, out))
    shuffled = store.made(SHUFFLED, {"of": source, "seed": seed}, lambda out: write_shuffled(adapter, out, seed=seed))
    return [
        Contender(BASE, "anchor", zero, "the update zero, heads and biases kept"),
        Contender(SHUFFLED, "anchor", shuffled, f"rows and columns of each update permuted, seed {seed}"),
    ]


def scaled(store: BenchStore, adapter: Path, factor: float) -> Path:
    """The folder of the adapter with its whole update times a factor."""
    how = {"of": adapter_digest(adapter), "alpha": factor}
    return store.made(f"alpha-{factor:g}", how, partial(write_scaled, adapter, factor=factor))


class Making(NamedTuple):
    """The inputs for making candidates. `kl:` candidates also need `base`, and inputs in `calibration`."""

    adapter: Path
    base: PathLike | None
    calibration: Path | None
    seed: int


def default_names(adapter: Path, *, calibrated: bool) -> list[str]:
    """The default candidates: the audit's suggestion, 1/2 and 1/4 of the rank, and two limits of KL if calibrated."""
    rank = max((module.r for module in open_adapter(adapter)[1].modules), default=1)
    ranks = [k for k in dict.fromkeys((rank // 2, rank // 4)) if k >= 1]
    return ["p90", *(f"svd:{k}" for k in ranks), *(DEFAULT_KL if calibrated else ())]


def made(store: BenchStore, names: Sequence[str], making: Making) -> tuple[list[Contender], list[str]]:
    """Make the candidates with these names, without the three that every bench has, and return them.

    The second result are notes on candidates that are left out because they equal another.

    Raises:
        GradienceError: a name is not known, or a candidate cannot be made.
    """
    recipes = [(name, _recipe(name, making)) for name in dict.fromkeys(names) if name not in ALWAYS]
    source = adapter_digest(making.adapter)
    contenders, notes, known = [], [], {source: FULL}
    for name, recipe in recipes:
        folder = recipe if isinstance(recipe, Path) else _resized(store, name, recipe, source, making)
        digest = adapter_digest(folder)
        # Cut to the ranks that it has, an adapter is the same, though its files may be written otherwise.
        if digest in known or (not isinstance(recipe, Path) and _is_as_large(folder, making.adapter)):
            notes.append(f"{name} is left out: it is the same adapter as {known.get(digest, FULL)}")
            continue
        known[digest] = name
        contenders.append(Contender(name, "candidate", folder, _words(name)))
    return contenders, notes


def _recipe(name: str, making: Making) -> dict[str, Any] | Path:
    """The options of `resize_adapter` for a candidate's name, or the adapter's folder that the name gives."""
    kind, _, value = name.partition(":")
    if name == "p90":
        return {"like_suggested": True}
    if kind == "adapter" and value:
        return Path(value)
    if kind not in _KINDS:
        raise GradienceError(f"{name!r} is not a candidate", advice=f"expected {_GRAMMAR}")
    criterion, number_of, _ = _KINDS[kind]
    try:
        number = number_of(value)
    except ValueError as error:
        raise GradienceError(f"{name!r}: {value!r} is not a number", advice=f"expected {_GRAMMAR}") from error
    if kind != "kl":
        return {criterion: number}
    if making.calibration is None or making.base is None:
        raise GradienceError(
            f"{name} needs --base and --calibration-data", advice="give the base, and other rows than --data's"
        )
    return {"kl": number, "base": making.base, "data": making.calibration, "seed": making.seed}


def _resized(store: BenchStore, name: str, options: dict[str, Any], source: str, making: Making) -> Path:
    how: dict[str, Any] = {"of": source, **{key: str(value) for key, value in options.items()}}
    if making.calibration is not None and "data" in options:
        how["data"] = file_hash(making.calibration)

    def make(out: Path) -> None:
        with refusing(name, f"expected {_GRAMMAR}"):
            resize_adapter(making.adapter, out, **options)

    return store.made(name, how, make)


def _is_as_large(folder: Path, adapter: Path) -> bool:
    """Whether the candidate in `folder` has the same ranks as the adapter."""
    ranks = [{m.name: m.r for m in open_adapter(place)[1].modules} for place in (folder, adapter)]
    return ranks[0] == ranks[1]


def _words(name: str) -> str:
    kind, _, value = name.partition(":")
    if name == "p90":
        return "each module at the rank that the audit suggests"
    return _KINDS[kind][2].format(value) if kind in _KINDS else "as given"


def require_packages(options: BenchOptions) -> None:
    """Refuse bad options, and a metric that runs models where what runs them is not installed, before any work.

    Raises:
        GradienceError: a package is missing, or an option is out of its range.
    """
    options.refuse_bad()
    if options.metric is None or options.metric in get_args(BuiltIn):
        require("torch", "transformers", "peft", extra="hf", what="running a model")


class Contest:
    """Scores entrants by one kind of evaluator; evaluations already in the store are reused."""

    def __init__(self, store: BenchStore, options: BenchOptions, adapter: Path, progress: Progress | None) -> None:
        self._store = store
        self._options = options
        self._progress = progress or (lambda _done, _total, _name: None)
        usual = default_metric(adapter)
        self._metric = options.metric or usual
        # A classifier predicts once for each example, and so counts each once
        self._tokens = options.max_length if usual == "loss" and self._metric in {"loss", "accuracy"} else None
        tolerance_of(options.tolerance)
        self._base = self._base_hash()

    def _base_hash(self) -> str:
        base = self._options.base
        if base is None:
            return ""
        if self._metric not in get_args(BuiltIn) and not Path(base).exists():
            return f"named {base}"  # a name that only the command understands
        return identity(find_shards(Path(base)))

    def evaluator(self, data: Path | None) -> Evaluator:
        """The evaluator of adapters on these data.

        Raises:
            GradienceError: the data or the base is missing.
        """
        options, base = self._options, str(self._options.base or "")
        of = {"base": self._base, "data": "" if data is None else file_hash(data)}
        if self._metric in get_args(BuiltIn):
            if data is None or not base:
                raise GradienceError(
                    f"the metric {self._metric} needs --base and --data",
                    advice="give the model and held-out rows, or a command as --metric",
                )
            return ModelEvaluator(
                cast("BuiltIn", self._metric), base=base, data=data, longest=options.max_length, of=of
            )
        return Command(
            self._metric,
            values={"base": base, "data": "" if data is None else str(real_path(data)), "seed": str(options.seed)},
            timeout=options.timeout,
            higher_is_better=not options.lower_is_better,
            of=of,
        )

    def scored(self, entry: Entry, evaluator: Evaluator, *, done: int = 0, total: int = 0) -> dict[str, Evaluation]:
        """The evaluation of each entrant of a task, by name."""
        reference = entry.entrants[0].folder
        hashes = {entrant.folder: adapter_digest(entrant.folder) for entrant in entry.entrants}
        evaluations = {}
        for place, entrant in enumerate(entry.entrants):
            self._progress(done + place, total, f"{entry.name} {entrant.name}")
            beside = None if entrant.folder == reference else reference
            of = {**evaluator.of, "adapter": hashes[entrant.folder], "reference": beside and hashes[beside]}
            evaluations[entrant.name] = self._store.evaluation(
                f"{entrant.name}-{entry.name}", of, partial(evaluator.evaluate, entrant.folder, beside)
            )
        return evaluations

    def report(
        self,
        kind: Literal["resize", "merge"],
        entries: Sequence[Entry],
        adapters: Sequence[PathLike],
        notes: Sequence[str],
    ) -> BenchReport:
        """Score all entrants of all tasks, judge them, and store and return the report.

        Raises:
            GradienceError: an evaluation fails; earlier evaluations are kept.
        """
        total = sum(len(entry.entrants) for entry in entries)
        tasks: list[Task] = []
        metrics: list[tuple[str, bool]] = []
        for entry in entries:
            evaluator = self.evaluator(entry.data)  # one at a time, because each holds a model
            done = sum(len(task.evaluations) for task in tasks)
            scores = self.scored(entry, evaluator, done=done, total=total)
            digest = "" if entry.data is None else f"sha256:{file_hash(entry.data)}"
            name = entry.entrants[0].name
            data = str(entry.data or "")
            tasks.append(Task(entry.name, data, digest, name, scores, alone=entry.alone))
            metrics.append((evaluator.name, evaluator.higher_is_better))
        self._progress(total, total, "")
        measured, better = metrics[0]
        options = self._options
        over: Literal["examples", "tokens"] = "examples" if self._tokens is None else "tokens"
        metric = BenchMetric(name=measured, higher_is_better=better, mean_over=over)
        heaviest = float(self._tokens or 1)
        rule = LossRule(tolerance_of(options.tolerance), cap_of(options, measured), options.seed, heaviest)
        result = judge(_contenders(entries), tasks, metric, rule)
        remarks = [note for task in tasks for one in task.evaluations.values() for note in one.notes]
        longest = max(weight for task in tasks for one in task.evaluations.values() for weight in one.weights)
        if longest < heaviest / 2:
            remarks.append(
                f"a row may have {heaviest:,.0f} tokens (--max-length), and the longest here has {longest:,.0f}: the "
                "bound allows for rows of the full length, of which one could overturn what these show; with the mean "
                "over examples, without --max-length, none counts more than another"
            )
        report = BenchReport(
            kind=kind,
            adapters=[str(path) for path in adapters],
            base=str(options.base or ""),
            out=str(self._store.folder),
            metric=metric,
            tolerance=options.tolerance.strip(),
            confidence=CONFIDENCE,
            cap=rule.cap,
            seed=options.seed,
            tasks=result.tasks,
            candidates=result.candidates,
            verdict=result.verdict,
            evaluated=self._store.evaluated,
            reused=self._store.reused,
            notes=list(dict.fromkeys([*notes, *remarks])),
        )
        self._store.keep_report(hide_in(report).to_json())
        return report


def _contenders(entries: Sequence[Entry]) -> list[Contender]:
    """Each entrant once, with the number of parameters of its factors."""
    contenders: dict[str, Contender] = {}
    for entry in entries:
        for one in entry.entrants:
            params = 0 if one.name == BASE else sum(module.params for module in open_adapter(one.folder)[1].modules)
            contenders.setdefault(one.name, one._replace(params=params))
    return list(contenders.values())
