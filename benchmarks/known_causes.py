"""Trainings whose cause of failure is known, each beside a twin without it, and what `diagnose` says of both.

    python benchmarks/known_causes.py --out RUNS [--seeds 3] [--only late]

Each training is real: a tiny classifier or language model with LoRA, the Trainer with the recorder, on CPU, 10 to 40 s
on one core. The fault is put into the data or the settings. A case is right if all of `must` are in the causes and
advice, and none of `mustnot` is. Trainings that exist are not made again.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tiny import LENGTH, Row, Rows, base_model, classified, sentences, with_lora
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from gradience.hf import GradienceCallback
from gradience.verbs.diagnose.run import diagnose

STEPS: Final = 120
WRONG: Final = 1 / 7  # share of labels drawn anew


@dataclass(frozen=True)
class Case:
    """One cause: how data and settings are changed, what must be said, and what would be false."""

    kind: str = "classes"
    must: tuple[str, ...] = ()
    mustnot: tuple[str, ...] = ()
    steps: int = STEPS
    lr: float = 5e-3
    data: Callable[[list[Row], list[Row]], tuple[list[Row], list[Row]]] | None = None
    jump: tuple[int, float] | None = None  # from this step on, the learning rate is this many times as high
    stop: int | None = None
    in_order: bool = False


def _masked(train: list[Row], held: list[Row]) -> tuple[list[Row], list[Row]]:
    none = torch.full_like(train[0]["labels"], -100)
    return [{**row, "labels": none} for row in train], held


def _half_masked(train: list[Row], held: list[Row]) -> tuple[list[Row], list[Row]]:
    n = len(train[0]["labels"]) // 2
    for row in train:
        row["labels"] = torch.cat([torch.full((n,), -100), row["labels"][n:]])
    return train, held


def _on_training_rows(train: list[Row], _: list[Row]) -> tuple[list[Row], list[Row]]:
    return train[:96], train[:96]


def _few(train: list[Row], held: list[Row]) -> tuple[list[Row], list[Row]]:
    return train[:96], held


def _leaked(train: list[Row], held: list[Row]) -> tuple[list[Row], list[Row]]:
    """The class is in the input, as a token of its own, of training and of held-out rows."""
    return [_told(row) for row in train], [_told(row) for row in held]


def _told(row: Row) -> Row:
    ids = row["input_ids"].clone()
    ids[: LENGTH // 2] = 12 * (5 + int(row["labels"]))  # tokens that the encoder can tell apart
    return {"input_ids": ids, "labels": row["labels"]}


def _sorted(train: list[Row], held: list[Row]) -> tuple[list[Row], list[Row]]:
    return sorted(train, key=lambda row: int(row["labels"])), held


CASES: Final[dict[str, Case]] = {
    "late": Case(kind="lm", lr=3e-3, jump=(84, 100.0), must=("DIVERGED",), mustnot=("NOT_LEARNT",)),
    "late_twin": Case(kind="lm", lr=3e-3, mustnot=("DIVERGED", "NOT_LEARNT")),
    "late_classes": Case(jump=(84, 100.0), must=("DIVERGED",), mustnot=("NOT_LEARNT",)),
    "late_classes_twin": Case(mustnot=("DIVERGED", "NOT_LEARNT")),
    "masked": Case(kind="lm", lr=3e-3, data=_masked, must=("MASKED",), mustnot=("NAN", "NOT_LEARNT", "DIVERGED")),
    "masked_twin": Case(kind="lm", lr=3e-3, data=_half_masked, mustnot=("MASKED", "NAN", "NOT_LEARNT")),
    "stopped": Case(stop=40, must=("STOPPED",)),
    "stopped_twin": Case(steps=40, mustnot=("STOPPED",)),
    "on_training_rows": Case(data=_on_training_rows, must=("SAME_ROWS",)),
    "on_training_rows_twin": Case(data=_few, mustnot=("SAME_ROWS",)),
    "leak": Case(data=_leaked, must=("AT_ONCE",)),
    "leak_twin": Case(mustnot=("AT_ONCE",)),
    "sorted": Case(data=_sorted, in_order=True, must=("ORDER",), mustnot=("DIVERGED",)),
    "sorted_twin": Case(in_order=True, mustnot=("ORDER", "DIVERGED")),
}

SAYS: Final[dict[str, tuple[str, ...]]] = {
    "DIVERGED": ("DIV104", "DIV305"),
    "NOT_LEARNT": ("NOL106", "TRN302"),
    "MASKED": ("DAT301", "DAT330"),
    "NAN": ("NUM101", "NUM102", "NUM301"),
    "STOPPED": ("END183",),
    "SAME_ROWS": ("LEK184",),
    "AT_ONCE": ("LEK185",),
    "ORDER": ("ORD186",),
}


@cache
def _encoder() -> dict[str, torch.Tensor]:
    """The weights of a classifier that has learnt ten classes of the same kind; its head is not used."""
    set_seed(11)
    model = base_model("classes", 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = classified(10, 32 * 150, 11, shuffled=False)
    random.Random(11).shuffle(rows)  # noqa: S311  # no secret
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        batch = {name: torch.stack([row[name] for row in part]) for name in ("input_ids", "labels")}
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value for name, value in model.state_dict().items() if not name.startswith("classifier")}


def _base(kind: str) -> Any:
    model = base_model(kind, 4)
    if kind == "classes":
        model.load_state_dict(_encoder(), strict=False)
    return model


def _rows(count: int, seed: int) -> list[Row]:
    """Rows of four classes in random order; one label in seven is wrong."""
    chosen = random.Random(seed)  # noqa: S311  # no secret
    rows = classified(4, count, seed, shuffled=False)
    chosen.shuffle(rows)
    for row in rows:
        if chosen.random() < WRONG:
            row["labels"] = torch.tensor(chosen.randrange(4))
    return rows


class _Jump(TrainerCallback):
    """Raises the learning rate in the middle of a run."""

    def __init__(self, at: int, times: float) -> None:
        self.at, self.times = at, times

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Raise it."""
        if state.global_step >= self.at:
            for group in optimizer.param_groups:
                group["lr"] *= self.times


class _Stop(TrainerCallback):
    """Ends the training at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop."""
        control.should_training_stop = state.global_step >= self.step


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.asarray(prediction.predictions).argmax(-1) == prediction.label_ids).mean())}


def train(case: Case, seed: int, folder: Path) -> None:
    """Train one case into a folder: the recorder's log, the adapter and the Trainer's arguments."""
    set_seed(seed)
    if case.kind == "lm":
        rows, held = sentences("new", 2000, seed), sentences("new", 96, seed + 10_000)
    else:
        rows, held = _rows(2000, seed), _rows(192, seed + 10_000)
    if case.data is not None:
        rows, held = case.data(rows, held)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=case.steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=96,
        learning_rate=case.lr,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
        train_sampling_strategy="sequential" if case.in_order else "random",
    )
    callbacks = [GradienceCallback()]
    callbacks += [_Jump(*case.jump)] if case.jump else []
    callbacks += [_Stop(case.stop)] if case.stop else []
    trainer = Trainer(
        model=with_lora(_base(case.kind), case.kind),
        args=args,
        train_dataset=Rows(rows),
        eval_dataset=Rows(held),
        compute_metrics=_accuracy if case.kind == "classes" else None,
        callbacks=callbacks,
    )
    trainer.train()
    trainer.save_model(str(folder))
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


def said_of(folder: Path) -> tuple[set[str], str]:
    """The classes of what `diagnose` says of a folder as a cause of warning or worse, and its words."""
    report = diagnose(folder)
    causes = [cause for cause in report.findings if cause.severity != "info"]
    ids = {cause.id for cause in causes} | {p.id for cause in causes for p in cause.pieces if p.severity is not None}
    return {name for name, of in SAYS.items() if ids & set(of)}, "; ".join(f"{c.id} {c.message}" for c in causes)


def main() -> None:
    """Train what is missing, and print what is said of each and how many are right."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    right: Counter[str] = Counter()
    for name, case in CASES.items():
        if not name.startswith(args.only):
            continue
        for seed in range(args.seeds):
            folder = args.out / f"{name}-{seed}"
            if not (folder / "trainer_state.json").is_file():
                train(case, seed, folder)
            said, words = said_of(folder)
            lacking, false = set(case.must) - said, set(case.mustnot) & said
            right[name] += not lacking and not false
            print(f"{name}-{seed}: {'right' if not lacking and not false else 'WRONG'}: {words}")
    for name, count in right.items():
        print(f"{name:<24} {count} of {args.seeds}")


if __name__ == "__main__":
    main()
