"""How an adapter is scored: by the user's own command, or by lm-eval. The model itself is in `model`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from gradience.errors import GradienceError
from gradience.io.reading import decode_json, open_regular
from gradience.schema.scalars import real
from gradience.verbs.bench.command import Printed, parsed, run, words
from gradience.verbs.bench.store import Evaluation

LM_EVAL: Final = "lm-eval:"
_LARGEST_SAMPLE: Final = 16 << 20  # bytes of one line of lm-eval's samples
_METRICS: Final = (
    "acc",
    "exact_match",
    "acc_norm",
    "f1",
    "bleu",
    "pass@1",
    "em",
)  # lm-eval's, of an example, best first


class Evaluator(Protocol):
    """Scores adapters; `of` is what a score depends on beside the adapter and its reference."""

    name: str
    higher_is_better: bool

    @property
    def of(self) -> dict[str, Any]:
        """Everything that a score depends on, beside the adapters."""

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:
        """The scores of an adapter; its outputs are compared with the reference's where the evaluator sees them."""


class Command:
    """A program of the user's that prints a score, or one of each example."""

    def __init__(
        self,
        command: str,
        *,
        values: Mapping[str, str],
        seeds: Sequence[int],
        timeout: float,
        higher_is_better: bool = True,
        of: Mapping[str, Any],
    ) -> None:
        words(command, {}, required="adapter")
        self.name = command
        self.higher_is_better = higher_is_better
        self.of = {"command": sha256(command.encode()).hexdigest(), "seeds": list(seeds), **of}  # it may hold a key
        self._values = values
        self._seeds = seeds
        self._timeout = timeout

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:  # noqa: ARG002  # it sees no outputs
        """Run it for each seed.

        Raises:
            GradienceError: it fails, prints no number, or not as many for one seed as for another.
        """
        printed = [self._run(adapter, seed) for seed in self._seeds]
        lists = [one.scores for one in printed if one.scores is not None]
        if lists and (len(lists) != len(printed) or len({len(scores) for scores in lists}) > 1):
            raise GradienceError(f"{self.name!r} scored other examples for one seed than for another")
        if lists:
            return _of_examples(np.mean(np.array(lists), axis=0).tolist())
        scores = [real(one.score) for one in printed]
        return Evaluation(unit="seed", scores=scores, weights=[1.0] * len(scores))

    def _run(self, adapter: Path, seed: int) -> Printed:
        argv = words(
            self.name, {**self._values, "adapter": str(adapter.resolve()), "seed": str(seed)}, required="adapter"
        )
        return parsed(run(argv, timeout=self._timeout), argv)


class LmEval:
    """A task of lm-eval (EleutherAI's lm-evaluation-harness), in a process of its own, by its samples."""

    higher_is_better = True

    def __init__(self, task: str, *, base: str, timeout: float, of: Mapping[str, Any]) -> None:
        if find_spec("lm_eval") is None:
            raise GradienceError("lm-eval is not installed", advice="pip install lm-eval, or give a command")
        self.name = f"{LM_EVAL}{task}"
        self.of = {"lm_eval": task, **of}
        self._task = task
        self._base = base
        self._timeout = timeout

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:  # noqa: ARG002  # it keeps no outputs
        """Run the task on the adapter.

        Raises:
            GradienceError: lm-eval fails, a path has a comma, or no sample has a metric that is known here.
        """
        place = str(adapter.resolve())
        if "," in f"{place}{self._base}":
            raise GradienceError(f"lm-eval cannot take a path with a comma: {place}", advice="give another --out")
        with tempfile.TemporaryDirectory() as folder:
            model = f"pretrained={self._base},peft={place}"
            argv = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model, "--tasks", self._task]
            run([*argv, "--log_samples", "--output_path", folder], timeout=self._timeout)
            rows = sorted(_samples(Path(folder)))
        if not rows:
            raise GradienceError(f"lm-eval left no samples of {self._task} with one of {', '.join(_METRICS)}")
        return _of_examples([score for _, _, score in rows])


def _of_examples(scores: list[float]) -> Evaluation:
    return Evaluation(unit="example", scores=[real(score) for score in scores], weights=[1.0] * len(scores))


def _samples(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Yield (task, number of the document, score) of each sample: of the metric that all of a file have."""
    for path in folder.rglob("samples_*.jsonl"):
        with open_regular(path) as file:
            lines = iter(lambda: file.readline(_LARGEST_SAMPLE), b"")
            rows = [_sample(path, line) for line in lines if line.strip()]
        name = next((m for m in _METRICS if all(isinstance(row.get(m), int | float) for row in rows)), None)
        if name is not None:
            yield from ((path.stem, int(row.get("doc_id", i)), float(row[name])) for i, row in enumerate(rows))


def _sample(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return decode_json(line, dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise GradienceError(f"{path.name} of lm-eval is damaged: {error}") from error
