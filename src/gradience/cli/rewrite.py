"""The commands ``gradience resize``, ``mitigate`` and ``convert``, which write an adapter from another."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from gradience.cli import options as opt
from gradience.cli.output import keep_freed, on_terminal
from gradience.device import prepare_jax
from gradience.errors import AdapterError
from gradience.render.writing import convert_text, mitigate_text, resize_text
from gradience.schema.writing import Target

_BY_OUTPUTS = ("kl", "rank", "max_params", "max_mb")


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """How the new ranks are chosen; exactly one is given.

    Parameters
    ----------
    rank:
        k = RANK in every module that has more.
    energy:
        Least k with sum_{i<=k} sigma_i^2 >= ENERGY * sum sigma_i^2.
    rel_error:
        Least k with sqrt(sum_{i>k} sigma_i^2 / sum sigma_i^2) <= REL_ERROR: the relative error of the module.
    max_mb:
        The weights file has at most MAX_MB * 10^6 bytes. Ranks go where they keep most sigma^2 per byte.
    max_params:
        The factors A and B have at most MAX_PARAMS parameters. Ranks go where they keep most sigma^2 per parameter.
    like_suggested:
        Each module at the rank that 'gradience audit --suggest-per-layer' suggests: its k@90%.
    sv_ratio:
        k = the number of sigma_i > sigma_1 / SV_RATIO. This and the next two as in sd-scripts' resize_lora.py.
    sv_fro:
        Least k with sqrt(sum_{i<=k} sigma_i^2 / sum sigma_i^2) >= SV_FRO.
    sv_cumulative:
        Least k with sum_{i<=k} sigma_i / sum sigma_i >= SV_CUMULATIVE.
    kl:
        With --calibrate: the fewest pieces for which the outputs' measured KL from the whole adapter is at most KL,
        in nats per prediction.
    """

    rank: PositiveInt | None = None
    energy: opt.Share = None
    rel_error: Annotated[float | None, Parameter(validator=Number(gte=0.0, lt=1.0))] = None
    max_mb: Annotated[float | None, Parameter(validator=Number(gt=0.0))] = None
    max_params: PositiveInt | None = None
    like_suggested: opt.Flag = False
    sv_ratio: Annotated[float | None, Parameter(validator=Number(gte=1.0))] = None
    sv_fro: opt.Share = None
    sv_cumulative: opt.Share = None
    kl: Annotated[float | None, Parameter(validator=Number(gt=0.0))] = None

    def chosen(self) -> dict[str, float]:
        """The one criterion given, as a keyword argument of `resize_adapter`.

        Raises:
            AdapterError: none or several are given, or the number is not finite.
        """
        names = [field.name for field in fields(self)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None and value is not False}
        if len(given) != 1:
            got = " and ".join(map(_option, given)) or "none"
            raise AdapterError(f"expected exactly one criterion, got {got}", advice=f"give one of {_listed(names)}")
        [(name, value)] = given.items()
        if not math.isfinite(value):
            raise AdapterError(f"{_option(name)} is {value}, expected a finite number")
        return given


@dataclass(frozen=True, kw_only=True)
class ByOutputs:
    """Choice by what the model's outputs lose, on inputs without labels; needs --base and gradience[hf].

    Parameters
    ----------
    calibrate:
        File of inputs: JSONL or Parquet with text, prompt or messages, or plain text with an input on each line. Over
        all modules at once those pieces are kept that do most to the outputs per parameter: for --kl, or within
        --max-params, --max-mb or the parameters of --rank. A module may leave the adapter. What it cost is measured
        on other inputs of the file.
    calibrate_tokens:
        The same as JSONL of token ids.
    pieces:
        two-sided: by inputs and gradients of each module; svd: those of the weights alone.
    seed:
        Of the choice of inputs and of the labels drawn from the model.
    """

    calibrate: Path | None = None
    calibrate_tokens: Path | None = None
    pieces: Literal["two-sided", "svd"] = "two-sided"
    seed: NonNegativeInt = 0

    def check(self, chosen: Iterable[str], base: Path | None) -> None:
        """Do nothing if the options go together.

        Raises:
            AdapterError: one of them is missing, given twice, or of no use for the criterion.
        """
        given = [name for name in ("calibrate", "calibrate_tokens") if getattr(self, name) is not None]
        [criterion] = chosen
        if len(given) > 1:
            raise AdapterError("got --calibrate and --calibrate-tokens, expected one of them", advice="give one")
        if not given and criterion == "kl":
            raise AdapterError("--kl is measured on inputs, and none are given", advice="give --calibrate FILE")
        if given and criterion not in _BY_OUTPUTS:
            raise AdapterError(
                f"{_option(criterion)} is a rule on singular values, which --calibrate does without",
                advice=f"with --calibrate give one of {_listed(_BY_OUTPUTS)}",
            )
        if given and base is None:
            raise AdapterError(f"{_option(given[0])} runs the model, and no base is given", advice="give --base MODEL")


_NO_CRITERION = Criterion()
_NO_INPUTS = ByOutputs()


def resize(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    out: Path | None = None,
    criterion: Annotated[Criterion, Parameter(name="*")] = _NO_CRITERION,
    by_outputs: Annotated[ByOutputs, Parameter(name="*")] = _NO_INPUTS,
    dtype: opt.Dtype = None,
    base: opt.Base = None,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Write a copy of a LoRA adapter whose updates have lower ranks, each the best of its rank.

    Give exactly one criterion. sigma_1 >= sigma_2 >= ... are the singular values of a module's update s B A, and k
    is its new rank, at least 1 and at most the present one. s stays as it is; all other tensors are copied bit for
    bit. The input adapter is never changed. DoRA needs --base for its magnitudes. Verify the result by
    an evaluation.

    Parameters
    ----------
    path:
        The folder that PEFT saved, or its weights file; or a LoRA file of kohya's (sd-scripts).
    out:
        The folder to write; for a file of kohya's, the .safetensors file.
    """
    adapter = opt.given_once("resize", path, peft_dir)
    place = opt.output_path(out, dry_run=dry_run)
    chosen = criterion.chosen()
    by_outputs.check(chosen, base)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for r x r problems, more threads would wait for each other
    keep_freed()
    prepare_jax("auto")
    from gradience.rewrite.resize import resize_adapter  # noqa: PLC0415  # imports jax, after its environment is set

    report = resize_adapter(
        adapter,
        place,
        dtype=dtype,
        base=base,
        adapter_config=adapter_config,
        weights=weights,
        force=force,
        progress=on_terminal("resize"),
        **asdict(by_outputs),
        **chosen,  # type: ignore[arg-type]  # each value has its own option's type
    )
    return opt.print_report(report, lambda it: resize_text(it, verbose=verbose), json=json)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_option, names))


def mitigate(
    path: Path | None = None,
    /,
    *,
    base: opt.RequiredBase,
    peft_dir: opt.PeftDir = None,
    out: opt.OutFolder = None,
    scale: Annotated[float, Parameter(validator=Number(gte=0.0, lte=1.0))] = 0.5,
    k: PositiveInt = 10,
    eps: Annotated[float, Parameter(validator=Number(gt=0.0, lte=1.0))] = 0.5,
    seed: opt.Seed = 0,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Write a copy of a PEFT LoRA adapter whose intruder dimensions are scaled down (arXiv 2410.21228).

    In each module dW' = (I - (1 - SCALE) U U^T) dW, where the columns of U are its intruders. Only what the adapter
    adds along them is scaled, never the base's own part; the rank stays. The adapter that is read is never changed.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file.
    scale:
        What is left of dW along each intruder: u^T dW' = SCALE * u^T dW.
    k:
        How many leading left singular vectors of W + dW to look at.
    eps:
        u is an intruder where max_i |<u, u_i(W)>| < EPS.
    """
    adapter = opt.given_once("mitigate", path, peft_dir)
    place = opt.output_path(out, dry_run=dry_run)
    if not (math.isfinite(scale) and math.isfinite(eps)):
        raise AdapterError(f"--scale and --eps are {scale} and {eps}, expected finite numbers")
    prepare_jax("auto")
    from gradience.rewrite.mitigate import mitigate_adapter  # noqa: PLC0415  # imports jax, after its environment is set

    report = mitigate_adapter(
        adapter,
        base,
        place,
        scale=scale,
        k=k,
        eps=eps,
        seed=seed,
        adapter_config=adapter_config,
        weights=weights,
        force=force,
        progress=on_terminal("mitigate"),
    )
    return opt.print_report(report, lambda it: mitigate_text(it, verbose=verbose), json=json)


def convert(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    out: opt.OutFolder = None,
    to: Target = "peft",
    rank: PositiveInt | None = None,
    energy: opt.Share = None,
    base: opt.Base = None,
    component: str | None = None,
    rename: opt.Strings = None,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    drop: opt.Flag = False,
    dry_run: opt.DryRun = False,
    force: opt.Force = False,
    verbose: opt.Verbose = False,
    json: opt.AsJson = False,
) -> int:
    """Write an adapter in another format: a plain PEFT LoRA, or MLX-LM's.

    Exact where the update has a low rank; what is not exact is asked for with --rank or --energy, and its error is
    reported for every module. The input adapter is never changed. --base is needed where the update depends on
    the base's weights (DoRA, HiRA, MiSS, PiSSA, OLoRA, KaSA, some VeRA) or names (kohya).

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file: PEFT (LoRA of any kind, AdaLoRA, LoHa, LoKr, VeRA, HiRA, MiSS),
        MLX-LM, kohya, diffusers.
    to:
        peft: W + s B A, s = lora_alpha / r. mlx: W + scale b^T a^T, one rank and one scale for all modules.
    rank:
        At most this rank in each module: the best approximation in Frobenius norm.
    energy:
        In each module the least k with sigma_1^2 + ... + sigma_k^2 >= ENERGY * (sum of all sigma^2).
    component:
        Which model of a pipeline, where the file adapts several: unet, text_encoder, ...
    rename:
        Replace a prefix of the modules' paths, as OLD=NEW; may be given several times.
    drop:
        Leave out tensors that the target has no place for, such as a saved head; without it they are refused.
    """
    adapter = opt.given_once("convert", path, peft_dir)
    place = opt.output_path(out, dry_run=dry_run)
    if rank is not None and energy is not None:
        raise AdapterError("--rank and --energy were both given", advice="give one of them")
    from gradience.rewrite.convert import convert_adapter  # noqa: PLC0415  # numpy, after the arguments are known to be right

    report = convert_adapter(
        adapter,
        place,
        to=to,
        rank=rank,
        energy=energy,
        base=base,
        component=component,
        renames=rename or (),
        drop=drop,
        force=force,
        adapter_config=adapter_config,
        weights=weights,
        progress=on_terminal("convert"),
    )
    return opt.print_report(report, lambda it: convert_text(it, verbose=verbose), json=json)
