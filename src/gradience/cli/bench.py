"""The commands ``gradience bench``, ``gradience bench merge`` and ``gradience bench mitigate``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, get_args

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from gradience.cli import options as opt
from gradience.cli.merge import parsed_weights
from gradience.cli.output import DONE, FOUND, NOT_DECIDED, draws_blocks, on_terminal
from gradience.device import prepare_jax
from gradience.errors import AdapterError, GradienceError
from gradience.render.bench import bench_text
from gradience.schema.compare import BenchReport
from gradience.schema.merge import MergeMethod

if TYPE_CHECKING:  # numpy and the evaluators are imported when they run
    from gradience.prove.bench.contest import Options

_CODES: Final = {"holds": DONE, "none": FOUND, "not_decided": NOT_DECIDED, "no_contrast": NOT_DECIDED}


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How adapters are scored and judged.

    Parameters
    ----------
    metric:
        loss, accuracy or exact-match through transformers; lm-eval:TASK; or a command with {adapter}, which may have
        {seed}, {base} and {data} and prints a number, a list of one score per example, or {"scores": [...]}. Without
        it accuracy for a classifier, else loss.
    tolerance:
        1% of the adapter's score, or 0.01 in the metric's unit.
    lower_is_better:
        Of a command's score.
    seeds:
        Runs of a command with {seed}, and trainings of each rank.
    timeout:
        Seconds that one command may take.
    max_length:
        Tokens of an example; longer ones are cut.
    """

    base: opt.Base = None
    metric: str | None = None
    tolerance: str = "1%"
    lower_is_better: opt.Flag = False
    seed: opt.Seed = 0
    seeds: PositiveInt = 3
    timeout: Annotated[float, Parameter(validator=Number(gt=0.0))] = 3600.0
    max_length: PositiveInt = 1024
    json: opt.AsJson = False

    def of_verb(self) -> Options:
        """The options of the library's functions."""
        from gradience.prove.bench.contest import Options  # numpy, after its environment is set

        given = asdict(self)
        del given["json"]
        return Options(longest=given.pop("max_length"), **given)


_DEFAULTS = BenchOptions()
Shared = Annotated[BenchOptions, Parameter(name="*")]
Out = Annotated[Path | None, Parameter(help="Folder for candidates, evaluations and bench.json; resumed if it is one.")]


def bench(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    data: Path | None = None,
    out: Out = None,
    candidates: str | None = None,
    calibrate: Path | None = None,
    retrain: str | None = None,
    options: Shared = _DEFAULTS,
) -> int:
    """Measure on held-out data what a smaller adapter loses, and name the smallest that loses too little to matter.

    Each candidate is compared with the adapter example by example. It holds where the worst plausible loss (95 %, for
    all candidates at once) is within the tolerance. Two anchors are always there: the base, and the adapter with its
    updates shuffled. The folder is resumed after a kill. Also: 'gradience bench merge', 'gradience bench mitigate'.
    Exit codes: 0 one holds, 1 none does, 3 not decided, 2 unusable input.

    Parameters
    ----------
    path:
        The adapter's folder.
    data:
        Held-out rows as JSONL: text; prompt and completion; messages; or text and label.
    candidates:
        svd:RANK, p90 (the audit's suggestion), energy:SHARE, params:N, kl:NATS, adapter:FOLDER, retrain:RANK, separated
        by commas. Without it p90, a half and a quarter of the rank, and with --calibrate kl:.003 and kl:.01.
    calibrate:
        Inputs without labels for kl:, as of 'gradience resize'. Not those of --data.
    retrain:
        A command that trains an adapter of rank {r} with seed {seed} into {out}; each rank is judged by its worst seed.
        Ranks are those of retrain:RANK, else the audit's suggestions.
    """
    adapter = opt.given_once("bench", path, peft_dir)
    names = None if candidates is None else [name.strip() for name in candidates.split(",") if name.strip()]
    _prepare()
    from gradience.prove.bench import bench_adapter  # imports jax, after its environment is set

    run = partial(bench_adapter, adapter, data=data, candidates=names, calibrate=calibrate, retrain=retrain)
    return _shown(run, out, options)


def merge(
    *adapters: Path,
    data: Annotated[list[Path] | None, Parameter(negative=())] = None,
    out: Out = None,
    method: str = "linear,svd,ties",
    weights: opt.Strings = None,
    density: opt.Share = None,
    options: Shared = _DEFAULTS,
) -> int:
    """Measure what merges of adapters lose on each adapter's own data.

    A merge holds where its worst plausible loss is within the tolerance on the data of every adapter, each beside that
    adapter alone. Exit codes as of 'gradience bench'.

    Parameters
    ----------
    adapters:
        Two adapters or more, of one base.
    data:
        Held-out rows, one file for each adapter in their order: repeat the option.
    method:
        Of 'gradience merge'; several separated by commas.
    weights:
        One number per adapter, as 0.5,0.5; repeat it to try several.
    density:
        Share of entries that ties and dare keep. Without it 0.2 and 0.5.
    """
    chosen = _methods(method)
    numbers = [parsed_weights(text) for text in weights or ()] or [None]
    _prepare()
    from gradience.prove.bench import bench_merge  # imports jax, after its environment is set

    run = partial(bench_merge, adapters, data=data or (), methods=chosen, weights=numbers, density=density)
    return _shown(run, out, options)


def mitigate(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    data: Path | None = None,
    kept: Path | None = None,
    out: Out = None,
    scales: str = "0,0.5",
    options: Shared = _DEFAULTS,
) -> int:
    """Measure what scaling intruder dimensions changes, beside plain scaling of alpha by the same change.

    The verdict is on --data; --kept is reported beside it. Exit codes as of 'gradience bench'.

    Parameters
    ----------
    path:
        The adapter's folder.
    data:
        Held-out rows of what was trained.
    kept:
        Rows of what should not be forgotten.
    scales:
        What is left of the update along each intruder, separated by commas.
    """
    adapter = opt.given_once("bench mitigate", path, peft_dir)
    try:
        shares = [float(text) for text in scales.split(",")]
    except ValueError as error:
        raise AdapterError(f"--scales {scales!r} is not a list of numbers", advice="write --scales 0,0.5") from error
    _prepare()
    from gradience.prove.bench import bench_mitigate  # imports jax, after its environment is set

    run = partial(bench_mitigate, adapter, data=data, kept=kept, scales=shares)
    return _shown(run, out, options)


def _prepare() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids its warning about forks when a command is started
    prepare_jax("auto")


def _methods(text: str) -> list[MergeMethod]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = get_args(MergeMethod)
    odd = [name for name in names if name not in known]
    if odd or not names:
        raise GradienceError(f"{(odd or [text])[0]!r} is not a method", advice=f"expected some of {', '.join(known)}")
    return names  # type: ignore[return-value]  # each is one of the names


def _shown(run: Callable[..., BenchReport], out: Path | None, options: BenchOptions) -> int:
    if out is None:
        raise AdapterError("no output path", advice="give --out FOLDER: evaluations are kept there")
    report = run(out, options=options.of_verb(), progress=on_terminal("bench"))
    opt.print_report(report, lambda it: bench_text(it, unicode=draws_blocks()), json=options.json)
    return _CODES[report.verdict.state]
