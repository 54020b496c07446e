"""Sources on what findings of several kinds mean together."""

from __future__ import annotations

from gradience.schema.findings import Evidence

__all__ = [
    "EXPLODED",
    "FACTORS",
    "JITTER",
    "NOISE_SPREAD",
    "ONE_ERROR",
    "PATTERNS",
    "ZERO_B",
]

JITTER = Evidence(
    source="heuristic",
    says="evaluations of one set share its examples, so what tells two apart is how their losses jump about, seen in "
    "second differences, and not the error that other examples would bring",
)
ONE_ERROR = Evidence(
    source="one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984",
    says="results within one standard error of the best cannot be told from it",
)
NOISE_SPREAD = Evidence(
    source="heuristic",
    says="the spread of the losses of single examples is not logged: it is taken as their mean, and with an accuracy p "
    "as sqrt(p / (1 - p)) times their mean if that is more",
)
EXPLODED = Evidence(
    source="heuristic; adapters at hand", says="an update's entries are 1e-4 to 3e-3 in size in trained adapters"
)
ZERO_B = Evidence(source="LoRA, arXiv 2106.09685; PEFT's default", says="B starts at zero: before a step s B A is zero")
FACTORS = Evidence(source="the weights file", says="rank and names of the modules are those of the factors stored")
PATTERNS = Evidence(
    source="PEFT, tuners_utils (0.21)", says="target_modules that match nothing raise only where none of them matches"
)
