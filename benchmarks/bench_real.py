"""Check, on real adapters, whether verdicts of `gradience bench` agree with those on a test set five times as large.

    python benchmarks/calibrate.py FOLDER --runs RUNS --only-train   # trains adapters; says what FOLDER holds
    python benchmarks/bench_real.py FOLDER --runs RUNS --out OUT [--metric accuracy] [--tolerance 3%]

For each adapter, the rows that its training did not see are a pool. The verb scores the candidates on the whole pool
once. Then each of six parts of the pool is a test set in turn, and the other five parts together are the larger set. A
verdict agrees if the mean loss on the larger set is on the side of the tolerance that the verdict names.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from calibrate import BATCH, STEPS, Run, base_of, data_of

from gradience.schema.compare import BenchCandidate, BenchMetric, BenchReport
from gradience.verbs.bench.judge import Contender, Task, judge, tolerance_of
from gradience.verbs.bench.options import BenchOptions
from gradience.verbs.bench.run import bench_adapter
from gradience.verbs.bench.store import Evaluation

PARTS: Final = 6
MOST: Final = 1200  # rows in a pool
CANDIDATES: Final = ("svd:12", "svd:8", "svd:4", "svd:2", "kl:.01")


def unseen(folder: Path, run: Run) -> tuple[list[dict[str, object]], list[str]]:
    """The rows that the adapter's training did not draw, and texts to calibrate on."""
    data = data_of(folder, run.task)
    chosen = random.Random(run.seed)  # noqa: S311  # as in the training
    seen = {row.text for _ in range(STEPS) for row in chosen.sample(data.train, BATCH)}
    rows = [*data.held_out, *(row for row in data.train if row.text not in seen)]
    return [row._asdict() for row in rows[:MOST]], [row.text for row in data.unlabelled]


def kept(report: BenchReport) -> dict[str, Evaluation]:
    """The evaluations of a bench, by the candidate's name."""
    found = {}
    for candidate in report.candidates:
        name = candidate.name.replace(":", "-")
        [file] = [
            path
            for path in Path(report.out).glob(f"evaluations/{name}-held-out-*.json")
            if json.loads(path.read_bytes())["of"]["built_in"] == report.metric.name
        ]
        found[candidate.name] = msgspec.convert(json.loads(file.read_bytes())["evaluation"], Evaluation)
    return found


def part(scores: Evaluation, rows: np.ndarray) -> Evaluation:
    """The evaluation of some of the examples."""
    return Evaluation(
        unit="example", scores=[scores.scores[i] for i in rows], weights=[scores.weights[i] for i in rows]
    )


def judged(report: BenchReport, scores: dict[str, Evaluation], rows: np.ndarray) -> list[BenchCandidate]:
    """The candidates, judged on some of the examples."""
    contenders = [Contender(c.name, c.role, Path(c.folder), c.params) for c in report.candidates]
    task = Task("held-out", "", "", "full", {name: part(one, rows) for name, one in scores.items()})
    metric = BenchMetric(name=report.metric.name, higher_is_better=report.metric.higher_is_better, unit="example")
    return judge(contenders, [task], metric, tolerance_of(report.tolerance), seed=0).candidates


def agreement(report: BenchReport) -> Counter[str]:
    """Count the verdicts on the parts: within and right, within and wrong, over and right, over and wrong, open."""
    scores = kept(report)
    order = np.random.default_rng(0).permutation(report.tasks[0].n)
    parts = np.array_split(order, PARTS)
    found: Counter[str] = Counter()
    for place, small in enumerate(parts):
        large = np.concatenate([other for i, other in enumerate(parts) if i != place])
        pairs = zip(judged(report, scores, small), judged(report, scores, large), strict=True)
        for one, other in pairs:
            if one.role == "candidate":
                harm = float(other.results[0].harm or 0.0)
                margin = report.tasks[0].margin
                right = (harm <= margin) is (one.outcome == "within")
                found[one.outcome if one.outcome == "open" else f"{one.outcome} {'right' if right else 'wrong'}"] += 1
    return found


def main() -> None:
    """Print a row for each adapter, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--tolerance", default="3%")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    total: Counter[str] = Counter()
    print("| adapter | n | adapter's score | base's | verdict on the pool | within, right | within, wrong |", end="")
    print(" over, right | over, wrong | open |\n|---|---|---|---|---|---|---|---|---|---|")
    for place in sorted((args.runs / "adapters").glob("minilm-*")):
        _, task, rank, seed = place.name.split("-")
        run = Run("minilm", task, int(rank[1:]), int(seed[1:]))
        rows, texts = unseen(args.folder, run)
        data, inputs = args.out / f"{place.name}.jsonl", args.out / f"{place.name}.txt"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        inputs.write_text("".join(f"{' '.join(text.split())}\n" for text in texts))
        options = BenchOptions(
            base=base_of(args.folder, args.runs, "minilm"), metric=args.metric, tolerance=args.tolerance
        )
        report = bench_adapter(
            place, args.out / place.name, data=data, candidates=CANDIDATES, calibration_data=inputs, options=options
        )
        found = agreement(report)
        total += found
        base = next(c for c in report.candidates if c.name == "base")
        own, state = report.tasks[0], f"{report.verdict.state} {report.verdict.candidate or ''}".strip()
        cells = [place.name, own.n // PARTS, f"{own.score:.3f}", f"{base.results[0].score:.3f}", state, *counts(found)]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"| all | | | | | {' | '.join(map(str, counts(total)))} |")


def counts(found: Counter[str]) -> list[int]:
    """The columns of the table."""
    return [found[name] for name in ("within right", "within wrong", "over right", "over wrong", "open")]


if __name__ == "__main__":
    main()
