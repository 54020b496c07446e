"""The options of ``check --data``: the record that the command line parses and the library takes."""

# Annotations are evaluated here, so that a record of the command line that inherits these fields has their types.
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.errors import ConfigError

Samples: TypeAlias = int | Literal["all"]

MOST_EXAMPLES: Final = 100  # rows that are shown as the model sees them
SAMPLES: Final = 10_000  # rows of a quick look: a share of 1 % is then known to 0.1 percentage points


@dataclass(frozen=True, kw_only=True)
class DataOptions:
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
    worst:
        Rows to show as the model sees them, with what is in the loss: those with the most faults first.
    write_clean:
        New .jsonl file for the rows without exact repetitions, rows of the evaluation set, empty answers and broken
        text; a ledger beside it names each row left out. All rows are read for it, and none is changed.
    """

    data: Path | None = None
    eval_data: Path | None = None
    tokenizer: Path | None = None
    max_length: int | None = None
    loss: Literal["assistant", "completion", "all"] | None = None
    template: Path | None = None
    packing: bool | None = None
    num_labels: int | None = None
    samples: Samples = SAMPLES
    seed: int = 0
    show_rows: bool = False
    worst: int = 0
    write_clean: Path | None = None

    def refuse_bad(self) -> None:
        """Refuse a number out of its range.

        Raises:
            ConfigError: there is one.
        """
        if self.samples != "all" and self.samples < 1:
            raise ConfigError(
                f"--samples: expected a number of rows or all, got {self.samples}", advice="correct the option"
            )
        if self.num_labels is not None and self.num_labels < 1:
            raise ConfigError(
                f"--num-labels: expected a number of classes from 1, got {self.num_labels}", advice="correct the option"
            )
        if not 0 <= self.worst <= MOST_EXAMPLES:
            raise ConfigError(
                f"--worst: expected a number of rows from 0 to {MOST_EXAMPLES}, got {self.worst}",
                advice="correct the option",
            )
        if self.seed < 0:
            raise ConfigError(f"--seed: expected a whole number from 0, got {self.seed}", advice="correct the option")
