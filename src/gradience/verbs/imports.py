"""The command ``gradience import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradience.commands import options as opt
from gradience.importers import import_run as write_log
from gradience.importers.sources import Format
from gradience.importers.table import parse_map
from gradience.render.findings import import_text


def import_run(
    source: Path,
    /,
    *,
    out: Path | None = None,
    columns: Annotated[list[str] | None, Parameter(name="--map", negative=())] = None,
    kind: Annotated[Format | None, Parameter(name="--format")] = None,
    run: str | None = None,
    force: opt.Flag = False,
    json: opt.AsJson = False,
) -> int:
    """Turn a finished run of another program into a run.jsonl.

    Reads an output folder of the Hugging Face Trainer, TRL, Axolotl, Unsloth, LLaMA-Factory or ms-swift, any CSV
    or JSON-lines table, TensorBoard event files, trackio's database, MLflow's stores, W&B's offline logs, and what
    torchtune, MLX-LM, Megatron, NeMo, verl, OpenRLHF, MMEngine (XTuner) and Ludwig leave. The source is never changed.

    Parameters
    ----------
    source:
        The output folder, a folder of such folders, a trainer_state.json, or a log.
    out:
        The run.jsonl to write; without it, run.jsonl in the source folder.
    columns:
        Columns of a table, such as loss=train/loss,step=_step,eval.loss=val_loss; may be repeated.
    kind:
        The source's format, where its content leaves it open.
    run:
        Only the run of this name, where the source holds several.
    force:
        Overwrite the log if it is there.
    """
    report = write_log(source, out, kind=kind, columns=parse_map(columns) if columns else None, run=run, force=force)
    return opt.print_report(report, import_text, json=json)
