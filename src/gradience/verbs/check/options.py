"""The options of ``check --data``: the record that the command line parses and the library takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, TypedDict

from gradience.configs.document import LossOn
from gradience.errors import OptionError
from gradience.io import PathLike
from gradience.ranges import LIBRARY_ONLY, Count, Seed, VerbOptions, Whole

Samples: TypeAlias = int | Literal["all"]

SAMPLES: Final = 10_000  # rows of a quick look: a share of 1 % is then known to 0.1 percentage points


@dataclass(frozen=True, kw_only=True)
class DataOptions(VerbOptions):
    """The data set, and how its trainer tokenises it; what is not given is taken from the recipe of --training.

    Parameters
    ----------
    data:
        Training data: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or a folder of such files or of
        save_to_disk; 'recipe' for the data set that --training names.
    eval_data:
        Evaluation data: what of it stands in the training data?
    tokenizer:
        Folder of the tokenizer.
    max_length:
        Tokens per sequence; 0 for no limit. Default: the recipe's, else 1024 as in TRL.
    loss:
        On the assistant's turns, on completions, or on all tokens. Default: the trainer's for the format.
    template:
        File with a chat template, instead of the tokenizer's.
    packing:
        Sequences are packed.
    num_labels:
        Number of classes, for rows with labels. Default: the configuration's, else that of --base.
    samples:
        Rows to read, drawn at random; or all.
    seed:
        Seed of the sample.
    show_rows:
        Show the text of rows that a finding names.
    """

    data: Path | None = None
    eval_data: Path | None = None
    tokenizer: Path | None = None
    max_length: Whole | None = None
    loss: LossOn | None = None
    template: Annotated[Path | None, LIBRARY_ONLY] = None
    packing: Annotated[bool | None, LIBRARY_ONLY] = None
    num_labels: Annotated[Count | None, LIBRARY_ONLY] = None
    samples: Annotated[Samples, LIBRARY_ONLY] = SAMPLES
    seed: Seed = 0
    show_rows: Annotated[bool, LIBRARY_ONLY] = False

    def refuse_bad(self) -> None:
        """Refuse an option out of its range."""
        super().refuse_bad()
        if self.samples != "all" and self.samples < 1:
            raise OptionError(f"samples is {self.samples}, expected a whole number from 1, or all")


class DataKeywords(TypedDict, total=False):
    """`DataOptions` as keywords, but for the data set itself."""

    eval_data: PathLike | None
    tokenizer: PathLike | None
    max_length: int | None
    loss: LossOn | None
    template: PathLike | None
    packing: bool | None
    num_labels: int | None
    samples: Samples
    seed: int
    show_rows: bool
