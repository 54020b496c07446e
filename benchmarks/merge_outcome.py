"""Which number of `gradience merge --check` tells what a merge leaves of an adapter's gain on its own held-out rows.

``python benchmarks/merge_outcome.py FOLDER MODEL ...`` merges pairs of the healthy adapters of ``reference.py`` with
weights of a half, scores base, adapter and merge on the adapter's held-out rows, and prints for each model Spearman's
rank correlation of the gain kept with each number, and the gains kept on either side of an overlap. `qwen`
and `gpt2` were looked at while the threshold was chosen, `llama` and `wide` only afterwards.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from reference import LENGTH, Outcome, base_of, losses, tokens
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gradience import merge_adapters, merge_check

PAIRS: Final = 14  # of each model
DROWNED: Final = 0.8  # share of norm(M)^2 that is orthogonal to an update
LITTLE: Final = 0.35  # of the gain


class Point(NamedTuple):
    """One adapter in one merge."""

    gain_kept: float
    orthogonal: float
    keeps: float
    cosine: float
    cancelled: float


def healthy(folder: Path, model: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the adapters that lower their held-out loss, with their records."""
    found = []
    for file in sorted((folder / model).glob("r*/outcome.json")):
        record = json.loads(file.read_text())
        if Outcome(record["without"], record["loss"], record["error"]).healthy:
            found.append((file.parent, record))
    return found


def held_out(model: Any, tokenizer: Any, adapter: Path) -> float:
    texts = [json.loads(line)["text"] for line in (adapter / "rows.jsonl").read_text().splitlines()]
    with torch.no_grad():
        return float(losses(model.eval(), tokens(tokenizer, texts, LENGTH), []).mean())


def points(folder: Path, model: str) -> list[Point]:
    """Merge pairs of adapters of different tasks, and return what each keeps."""
    base = base_of(folder, model, None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(healthy(folder, model), 2)
        if one[1]["task"] != other[1]["task"]
    ]
    random.Random(0).shuffle(pairs)  # noqa: S311  # pairs, not secrets
    found = []
    for pair in pairs[:PAIRS]:
        report = merge_check(*(place for place, _ in pair))
        with TemporaryDirectory() as out:
            merge_adapters([place for place, _ in pair], Path(out) / "merged", method="linear")
            loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            merged = PeftModel.from_pretrained(loaded, Path(out) / "merged")
            for item, (place, record) in zip(report.adapters, pair, strict=True):
                gain = record["without"] - record["loss"]
                kept = (record["without"] - held_out(merged, tokenizer, place)) / gain
                found.append(
                    Point(kept, item.kept.other, item.kept.coefficient, report.pairs[0].cosine, report.signs.cancelled)
                )
                print(model, place.name, record["task"], *(f"{x:.3f}" for x in found[-1]), flush=True)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    disable_progress_bar()
    for model in sys.argv[2:]:
        table = np.array(points(Path(sys.argv[1]), model))
        names = Point._fields[1:]
        rhos = [spearmanr(table[:, 0], table[:, 1 + place]).statistic for place in range(len(names))]
        print(
            f"\n{model}: {len(table)} points;", ", ".join(f"{n} {rho:+.2f}" for n, rho in zip(names, rhos, strict=True))
        )
        over = table[:, 1] >= DROWNED
        for side, word in ((over, "at or over"), (~over, "under")):
            kept = table[side, 0]
            little = int((kept <= LITTLE).sum())
            median = f", median {np.median(kept):.2f}" if len(kept) else ""
            print(f"  orthogonal {word} {DROWNED}: {little} of {len(kept)} keep {LITTLE:.0%} or less{median}\n")


if __name__ == "__main__":
    main()
