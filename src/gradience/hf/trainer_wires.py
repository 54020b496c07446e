"""What is trained under a callback, of transformers or of Lightning: the watch on it, and the findings to heed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradience.hf.recorder import Lookout, RunRecorder
from gradience.hf.snapshot import batch_size
from gradience.hf.watched import WiringWatch
from gradience.hf.wires import live_look
from gradience.hf.wiring import data_of
from gradience.schema.document import Finding
from gradience.schema.events import EventBase
from gradience.schema.wiring import DataWiring


class WiringRequest(NamedTuple):
    """What the user of a callback wants to have recorded."""

    wiring: bool
    digests: bool


class CallbackWires:
    """The watch on one training, whose findings wait until the callback may stop it.

    Args:
        lookout: judges each look.
        recorder: writes the events; None on a process that only judges.
        digests: whether batches and random states are digested at each step.
    """

    def __init__(self, lookout: Lookout, recorder: RunRecorder | None, digests: bool) -> None:  # noqa: FBT001  # the user's
        self._lookout, self._recorder, self._digests = lookout, recorder, digests
        self._found: list[Finding] = []
        self._watch: WiringWatch | None = None

    def begin(self, model: torch.nn.Module, optimizer: Any, *, step: int, **options: Any) -> None:
        """Look at what is trained, and follow it; `options` are those of `WiringWatch`."""
        if step and self._recorder is not None:
            self._recorder.recall(self._lookout, step)
        self._watch = WiringWatch(model, optimizer, self._take, self._fail, step=step, digests=self._digests, **options)

    def begin_trainer(self, args: Any, state: Any, shown: Mapping[str, Any]) -> None:
        """Look at what a Trainer's callback is shown, and follow it."""
        self.begin(
            shown["model"],
            shown.get("optimizer"),
            step=state.global_step,
            schedule=shown.get("lr_scheduler"),
            data=lambda: _data(args, state, shown.get("train_dataloader")),
        )

    def see(self, batch: Any) -> None:
        """Take the next batch, where the model is not called with it."""
        if self._watch is not None:
            self._watch.see(batch)

    def take(self) -> Sequence[Finding]:
        """Return the findings since the last call."""
        found, self._found = self._found, []
        return found

    def saved(self, folder: Path | None, step: int) -> None:
        """Look at what is trained as a checkpoint was saved in a folder."""
        if self._watch is not None:
            self._watch.saved(folder, step)

    def evaluated(self, step: int | None = None) -> None:
        """Look at what an evaluation called that has just ended."""
        if self._watch is not None:
            self._watch.evaluated(step)

    def failed(self) -> None:
        """Look at how the model was called last, as training fails."""
        if self._watch is not None:
            self._watch.failed()

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()

    def _take(self, kind: type[EventBase], step: int, fields: dict[str, Any]) -> None:
        if (recorder := self._recorder) is not None:
            recorder.record(lambda log: log.looked(kind, step, fields))  # type: ignore[arg-type]  # one of the two
        self._found += self._lookout.looked(live_look(kind, step, fields))

    def _fail(self, error: Exception) -> None:
        if self._recorder is not None:
            self._recorder.fail(error)


def _data(args: Any, state: Any, loader: Any) -> DataWiring | None:
    seed = args.data_seed if getattr(args, "data_seed", None) is not None else args.seed
    return data_of(
        loader,
        batch_size=batch_size(args, state),
        accumulation=args.gradient_accumulation_steps,
        world_size=args.world_size,
        seed=seed,
        skips=not args.ignore_data_skip,
    )
