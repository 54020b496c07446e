"""``gradience convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from gradience.cli.options import DryRun, Force, Verbose, given_once, place_of, printed
from gradience.cli.output import cleaning_up, on_terminal
from gradience.errors import AdapterError
from gradience.render.writing import convert_text
from gradience.schema.writing import Target


def convert(
    path: Path | None = None,
    /,
    *,
    peft_dir: Path | None = None,
    out: Path | None = None,
    to: Target = "peft",
    rank: PositiveInt | None = None,
    energy: Annotated[float | None, Parameter(validator=Number(gt=0.0, lte=1.0))] = None,
    base: Path | None = None,
    component: str | None = None,
    rename: Annotated[list[str] | None, Parameter(negative=())] = None,
    adapter_config: Path | None = None,
    weights: Path | None = None,
    drop: Annotated[bool, Parameter(negative=())] = False,
    dry_run: DryRun = False,
    force: Force = False,
    verbose: Verbose = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write an adapter in another format: a plain PEFT LoRA, or MLX-LM's.

    Exact where the update has a low rank; what is not exact is asked for with --rank or --energy, and its error is
    reported for every module. The adapter that is read is never changed.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file: PEFT (LoRA of any kind, AdaLoRA, LoHa, LoKr, VeRA, HiRA, MiSS),
        MLX-LM, kohya, diffusers.
    peft_dir:
        The same, as an option.
    out:
        The folder to write.
    to:
        peft: W + s B A, s = lora_alpha / r. mlx: W + scale b^T a^T, one rank and one scale for all modules.
    rank:
        At most this rank in each module: the best approximation in Frobenius norm.
    energy:
        In each module the least k with sigma_1^2 + ... + sigma_k^2 >= ENERGY * (sum of all sigma^2).
    base:
        The base model, where the update is a function of its weights (DoRA, HiRA, MiSS, PiSSA, OLoRA, KaSA, some
        VeRA) or its names are needed (kohya): a folder with safetensors, or organisation/name in the hub's cache.
    component:
        Which model of a pipeline, where the file adapts several: unet, text_encoder, ...
    rename:
        Replace a prefix of the modules' paths, as OLD=NEW; may be given several times.
    adapter_config:
        An adapter_config.json elsewhere than beside the weights.
    weights:
        A weights file of another name.
    drop:
        Leave out tensors that the target has no place for, such as a saved head; without it they are refused.
    json:
        Print one JSON document (schemas/convert-report-v2.schema.json).
    """
    adapter = given_once("convert", path, peft_dir)
    place = place_of(out, dry_run=dry_run)
    if rank is not None and energy is not None:
        raise AdapterError("--rank and --energy were both given", advice="give one of them")
    from gradience.verbs.convert import convert_adapter  # noqa: PLC0415  # numpy, after the arguments are known to be right

    with cleaning_up():
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
    return printed(report, convert_text, verbose=verbose, json=json)
