"""The options of ``bench``, apart from its work, which imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gradience.ranges import SELDOM, Count, Positive, Seed, VerbOptions


@dataclass(frozen=True, kw_only=True)
class BenchOptions(VerbOptions):
    """How adapters are scored and judged.

    Parameters
    ----------
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    metric:
        loss, accuracy or exact-match through transformers; or a command with {adapter}, which may have {seed}, {base}
        and {data} and prints a list of one score per example, or {"scores": [...]}. Without it accuracy for a
        classifier, else loss.
    tolerance:
        1% of the adapter's score, or 0.01 in the metric's unit.
    cap:
        The most that one example counts, as harm or as gain, in the metric's unit. Without it 2 nats for a loss.
    lower_is_better:
        Of a command's score.
    seed:
        Random seed.
    timeout:
        Seconds that one command may take.
    max_length:
        Tokens of an example; longer ones are cut, without it at 1024. With it the mean over tokens is judged, and the
        bound allows for a row of this length; without it the mean over examples.
    """

    base: Path | None = None
    metric: str | None = None
    tolerance: str = "1%"
    cap: Annotated[Positive | None, SELDOM] = None
    lower_is_better: Annotated[bool, SELDOM] = False
    seed: Seed = 0
    timeout: Annotated[Positive, SELDOM] = 3600.0
    max_length: Annotated[Count | None, SELDOM] = None


@dataclass(frozen=True, kw_only=True)
class DriftOptions(VerbOptions):
    """Which texts an adapter's change is measured on.

    Parameters
    ----------
    rows:
        Texts of each file that are read, up to 40 predictions of each.
    seed:
        Seed of the choice of texts from a file.
    """

    rows: Count = 32
    seed: Seed = 0
