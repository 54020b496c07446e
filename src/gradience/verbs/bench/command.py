"""The commands ``gradience bench`` and ``gradience bench merge``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final, get_args

from cyclopts import Parameter

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, FOUND, NOT_DECIDED, draws_blocks
from gradience.device import prepare_jax
from gradience.errors import AdapterError, GradienceError, OptionError
from gradience.ranges import option_name
from gradience.schema.compare import BenchReport
from gradience.schema.merge import MergeMethod
from gradience.verbs.bench.options import BenchOptions, DriftOptions
from gradience.verbs.bench.view import bench_text
from gradience.verbs.merge.options import parsed_weights

_CODES: Final = {"holds": DONE, "none": FOUND, "not_decided": NOT_DECIDED, "no_contrast": NOT_DECIDED}


@dataclass(frozen=True, kw_only=True)
class _BenchOptions(BenchOptions):
    json: opt.AsJson = False


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """What is compared with the adapter.

    Parameters
    ----------
    candidates:
        svd:RANK, p90 (the audit's suggestion), energy:SHARE, params:N, kl:NATS, adapter:FOLDER, separated by commas.
        Without it p90, a half and a quarter of the rank, and with --calibration-data kl:.003 and kl:.01.
    calibration_data:
        Rows without labels for kl:, as the --data of 'gradience resize'. Not those of --data.
    """

    candidates: str | None = None
    calibration_data: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _ChangeOptions(DriftOptions):
    """What an adapter's change is measured on.

    Parameters
    ----------
    elsewhere:
        Without --out: texts of what should not change, in the forms of --data. Default: 48 built-in sentences.
    verbose:
        List every group of modules.
    """

    elsewhere: Path | None = None
    verbose: Annotated[bool, Parameter(alias="-v")] = False


_DEFAULTS = _BenchOptions()
_NO_CANDIDATES = _Candidates()
_CHANGE = _ChangeOptions()
Shared = Annotated[_BenchOptions, opt.RECORD]
Out = Annotated[Path | None, Parameter(help="Folder for candidates, evaluations and bench.json; resumed if it is one.")]


def bench(
    path: Path,
    /,
    *,
    data: Path | None = None,
    out: Out = None,
    candidates: Annotated[_Candidates, opt.RECORD] = _NO_CANDIDATES,
    change: Annotated[_ChangeOptions, opt.RECORD] = _CHANGE,
    options: Shared = _DEFAULTS,
) -> int:
    """Measure what an adapter changes; with --out, what a smaller one loses, and name the smallest that loses little.

    Without --out: KL of the outputs from the base's, flips and loss, on --data (texts of the adapter's task) and on
    others; the same at lower scales of the adapter, and without each group of its modules. Needs gradience[hf].

    With --out each candidate is compared with the adapter on --data, example by example. It holds where the worst
    plausible loss (95 %, for all candidates at once) is within the tolerance. Two anchors are always there: the base,
    and the adapter with its updates shuffled. The folder is resumed after a kill. Also: 'gradience bench merge'.
    Exit codes: 0 measured, or one holds; 1 none does; 3 not decided; 2 unusable input.

    Parameters
    ----------
    path:
        The adapter's folder.
    data:
        Held-out rows as JSONL: text; prompt and completion; messages; or text and label. Without --out also plain text
        with one a line; labels are not needed.
    """
    if out is None:
        return _measured(path, data, candidates, change, options)
    _refuse(change, "without --out")
    names = candidates.candidates
    chosen = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    _prepare()
    from gradience.verbs.bench.run import bench_adapter  # imports jax, after its environment is set

    run = partial(
        bench_adapter,
        path,
        data=data,
        candidates=chosen,
        calibration_data=candidates.calibration_data,
    )
    return _shown(run, out, options)


def _measured(
    path: Path, data: Path | None, candidates: _Candidates, change: _ChangeOptions, options: _BenchOptions
) -> int:
    """Measure what the adapter changes, beside its base."""
    _refuse(candidates, "with --out FOLDER")
    _refuse(replace(options, base=None, json=False), "with --out FOLDER")
    if options.base is None:
        raise AdapterError("needs --base", advice="give --base MODEL")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids its warning about forks
    from gradience.verbs.bench.drift import measure_drift  # --help needs none of it
    from gradience.verbs.bench.drift_view import drift_text  # as above

    report = measure_drift(
        path,
        options.base,
        texts=data,
        elsewhere=change.elsewhere,
        options=DriftOptions(rows=change.rows),
        progress=on_terminal("bench"),
    )
    return opt.print_report(report, lambda it: drift_text(it, verbose=change.verbose), json=options.json)


def _refuse(record: _Candidates | _ChangeOptions | _BenchOptions, where: str) -> None:
    """Refuse an option that says nothing here.

    Raises:
        OptionError: one is given.
    """
    given = [field.name for field in fields(record) if getattr(record, field.name) != field.default]
    if given:
        raise OptionError(f"{option_name(given[0])} is for a bench {where}", advice="see 'gradience bench --help'")


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
    adapter alone. Anchors are each adapter alone at its merge weight: how much of a loss is dilution. Exit codes as of
    'gradience bench'.

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
    from gradience.verbs.bench.run import bench_merge  # imports jax, after its environment is set

    run = partial(bench_merge, adapters, data=data or (), methods=chosen, weights=numbers, density=density)
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


def _shown(run: Callable[..., BenchReport], out: Path | None, options: _BenchOptions) -> int:
    if out is None:
        raise AdapterError("needs --out", advice="give --out FOLDER: evaluations are kept there")
    report = run(out, options=options, progress=on_terminal("bench"))
    opt.print_report(report, lambda it: bench_text(it, unicode=draws_blocks()), json=options.json)
    return _CODES[report.verdict.state]
