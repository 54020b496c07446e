"""``gradience convert``."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import PositiveInt

from gradience.cli import options as opt
from gradience.cli.output import on_terminal
from gradience.errors import AdapterError
from gradience.render.writing import convert_text
from gradience.schema.writing import Target


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
    from gradience.verbs.convert import convert_adapter  # noqa: PLC0415  # numpy, after the arguments are known to be right

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
