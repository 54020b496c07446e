"""Follow what is trained through a run: as it starts or resumes, after its first steps, and at each save.

`WiringWatch` serves the Trainer's callback, Lightning's, and `TelemetryWriter.watch` for loops of one's own. It hooks
the optimizer to count steps and to see which tensors get a gradient; no number of the training is changed, and no
failure of it reaches the training.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from gradience.hf.digests import local
from gradience.hf.fed import BatchDigests, Hook
from gradience.hf.invocation import Invocations
from gradience.hf.leftover import Leftover
from gradience.hf.parameters import FEW, NamedParameter, groups_of, parts_of
from gradience.hf.passes import Passes
from gradience.hf.wiring import EarlierStates, look, saved_in, unwrapped_optimizers
from gradience.schema.events import EventBase, StepDigests, Wiring
from gradience.schema.wiring import DataWiring, GradientWiring

LOOKS: Final = 8  # optimizer steps whose gradients are looked at; B of a LoRA is 0 until the first, and so A's gradient
_NARROW, _ELEMENTS = 2, 4096  # bytes of an element that rounds steps away; first elements of a tensor that are kept
_WITHOUT_COPIES: Final = ("torch.optim.", "bitsandbytes.")  # others may keep what they train in 32 bits beside it
_EXPERT: Final = re.compile(r"\bexperts?\.\d+")

Sink: TypeAlias = Callable[[type[EventBase], int, dict[str, Any]], None]
"""Gets each event: its class, its step and its fields."""


class WiringWatch:
    """The wiring of one run, from its start to its end.

    Args:
        model: the model that is trained.
        optimizer: its optimizer, or a list of several.
        sink: gets the events.
        fail: gets the exception if looking failed; the watch is then over.
        schedule: the schedule of the learning rate.
        data: returns what decides the rows of a step.
        step: the optimizer steps made before.
        digests: whether batches and random states are digested at each step.
        called: whether the model itself is called with each batch; else `see` is told of each.
    """

    def __init__(  # noqa: PLR0913  # the one list of its options, for others' scripts
        self,
        model: torch.nn.Module,
        optimizer: Any,
        sink: Sink,
        fail: Callable[[Exception], None],
        *,
        schedule: Any = None,
        data: Callable[[], DataWiring | None] = lambda: None,
        step: int = 0,
        digests: bool = True,
        called: bool = True,
    ) -> None:
        self._model, self._schedule, self._data = model, schedule, data
        self._optimizers = unwrapped_optimizers(optimizer)
        self._sink, self._fail = sink, fail
        self.step = step
        self._gradients: _Gradients | None = None
        self._passes: Passes | None = None
        self._resumed = step > 0
        self._fed: BatchDigests | None = None
        self._earlier: EarlierStates | None = None
        self._handles: list[Any] = []
        self._safely(lambda: self._begin("resume" if step else "start", digests=digests, called=called))

    def see(self, batch: Any) -> None:
        """Take the next batch, where the model is not called with it."""
        if self._fed is not None:
            self._fed.see(batch)

    def saved(self, folder: Path | None = None, step: int | None = None) -> None:
        """Record what is saved now, and what the folder's adapter file holds."""
        at = self.step if step is None else step
        self._safely(lambda: self._look("save", at, saved=folder and saved_in(folder, self._model, self._earlier)))

    def evaluated(self, step: int | None = None) -> None:
        """Record what an evaluation that has just ended called, if no step was made since the one it is of."""
        if self._passes is None or (step is not None and step != self.step):
            return
        if (evaluation := self._passes.evaluated()) is not None:
            self._safely(lambda: self._sink(Wiring, self.step, {"phase": "evaluation", "evaluation": evaluation}))

    def failed(self) -> None:
        """Record how the model was called last, as training fails: that may be why."""
        self._safely(lambda: self._say_pass(self.step + 1))

    def close(self) -> None:
        """Remove the hooks, and write what is not yet written."""
        self._unhook()
        gradients, self._gradients = self._gradients, None
        # Backward passes without a step are told too: such a loop trains nothing.
        if gradients is not None and (gradients.steps or gradients.leftover.arrived):
            self._safely(lambda: self._say_gradients(gradients))
        fed, self._fed = self._fed, None
        if fed is not None:
            self._safely(fed.close)

    def _begin(self, phase: str, *, digests: bool, called: bool) -> None:
        self._look(phase, self.step)
        self._earlier = EarlierStates(self._model, self.step)
        trained = {id(t) for one in self._optimizers for group in one.param_groups for t in group["params"]}
        plain = all(type(one).__module__.startswith(_WITHOUT_COPIES) for one in self._optimizers)
        self._gradients = _Gradients(parts_of(self._model), trained, Invocations(self._model), plain=plain)
        self._passes = Passes(self._model)
        self._handles += [self._passes, self._gradients.leftover, self._gradients.invocations]
        for place, one in enumerate(self._optimizers):
            if isinstance(one, torch.optim.Optimizer):
                # Several optimizers step once each in one step of training: the first one counts it.
                method = self._after_first if place == 0 else self._after_other
                # Behind the step and before `zero_grad`: the gradients are still there.
                self._handles.append(one.register_step_post_hook(Hook(method)))
        if digests:
            write = lambda step, fields: self._sink(StepDigests, step, fields)  # noqa: E731  # one line of its own
            self._fed = BatchDigests(self._model if called else None, write, self.step)

    def _look(self, phase: str, step: int, **more: Any) -> None:
        fields = look(self._model, self._optimizers, self._schedule)
        try:
            data = self._data()
        except Exception as error:  # noqa: BLE001  # a loader of any kind
            data = None
            fields["unseen"].append(f"data: {type(error).__name__}")
        self._sink(Wiring, step, {"phase": phase, **fields, "data": data, **more})

    def _after_first(self, *_: Any) -> None:
        """Count a step of the first optimizer."""
        self.step += 1
        self._safely(self._take_step)

    def _after_other(self, *_: Any) -> None:
        if self._gradients is not None:
            self._safely(self._gradients.take)

    def _take_step(self) -> None:
        if self._fed is not None:
            self._fed.step_made(self.step)
        self._say_pass(self.step)
        if self._earlier is not None:
            self._earlier.step_made(self.step)
        if (gradients := self._gradients) is None:
            return
        gradients.take()
        gradients.leftover.step_made()
        gradients.steps += 1
        groups = [group for one in self._optimizers for group in one.param_groups]
        gradients.rateless += all(float(group["lr"]) == 0.0 for group in groups)
        over = gradients.steps >= LOOKS
        if over:
            gradients.leftover.remove()
            gradients.invocations.remove()
            self._gradients = None
        # B gets a gradient at the first step, though it is 0 then: if nothing got one, more steps would show no more.
        if over or (gradients.steps == 1 and not gradients.reached):
            self._say_gradients(gradients)

    def _say_pass(self, step: int) -> None:
        if self._passes is not None and (called := self._passes.step_made()) is not None:
            self._sink(Wiring, step, {"phase": "pass", "passes": called})

    def _say_gradients(self, gradients: _Gradients) -> None:
        if self._resumed and self._fed is not None:
            self._fed.flush()  # judged against what was fed before
        fields = look(self._model, self._optimizers, brief=True)
        if not gradients.steps:
            fields["groups"] = groups_of(parts_of(self._model))  # did they move without a step that was seen?
        self._sink(Wiring, self.step, {"phase": "gradients", **fields, "gradients": gradients.wiring()})

    def _safely(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  # foreign modules and a full disk: none may end the training
            self._unhook()
            self._gradients = None
            self._fail(error)

    def _unhook(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        self._passes = self._earlier = None


class _Gradients:
    """Which trainable tensors received a gradient so far."""

    def __init__(
        self, parts: Sequence[NamedParameter], held: Collection[int], invocations: Invocations, *, plain: bool
    ) -> None:
        self.steps = self.rateless = 0
        self.invocations = invocations
        self.leftover = Leftover([part for part in parts if id(part.tensor) in held])  # others nobody sets to zero
        self._parts = {id(part.tensor): part for part in parts}
        narrow = [part.tensor for part in parts if part.tensor.element_size() == _NARROW and id(part.tensor) in held]
        own = [one for one in narrow if plain and one.is_floating_point() and type(one) is torch.nn.Parameter]
        self._began = [(one, one.detach().reshape(-1)[:_ELEMENTS].clone()) for one in own if one.requires_grad]
        self._lost = (0, 0)
        self._looked: set[int] = set()
        self._present: set[int] = set()
        self._reached: set[int] = set()

    @property
    def reached(self) -> int:
        """Number of tensors whose gradient was once not zero."""
        return len(self._reached)

    def take(self) -> None:
        """Look at the gradients that are there now."""
        if self.steps == LOOKS - 1:
            self._lost = self._unmoved()
        live = {mark: part.tensor for mark, part in self._parts.items() if part.tensor.requires_grad}
        self._looked |= live.keys()
        there = {mark: t.grad for mark, t in live.items() if mark not in self._reached and t.grad is not None}
        self._present |= there.keys()
        plain = {mark: grad for mark, grad in there.items() if not grad.is_sparse}
        # A sparse gradient has the rows that were used; counting its zeros would make it dense.
        self._reached |= there.keys() - plain.keys()
        by_device = defaultdict[torch.device, list[int]](list)
        for mark, grad in plain.items():
            by_device[grad.device].append(mark)
        with torch.no_grad():
            for marks in by_device.values():
                counts = torch.stack([torch.count_nonzero(local(plain[mark])) for mark in marks]).tolist()
                self._reached |= {mark for mark, count in zip(marks, counts, strict=True) if count}

    def _unmoved(self) -> tuple[int, int]:
        """The elements of 16 bits that have a gradient and did not begin as 0; of them, those that never moved."""
        count = same = torch.zeros((), dtype=torch.int64)
        for tensor, first in self._began:
            if tensor.grad is not None and not tensor.grad.is_sparse and tensor.dtype == first.dtype:
                live = (tensor.grad.reshape(-1)[:_ELEMENTS] != 0) & (first != 0)
                count = count + live.sum().cpu()
                same = same + (live & (tensor.detach().reshape(-1)[:_ELEMENTS] == first)).sum().cpu()
        return int(count), int(same)

    def wiring(self) -> GradientWiring:
        """Return what was seen, as a part of the event."""
        looked = [part for mark, part in self._parts.items() if mark in self._looked]
        without = [part for part in looked if id(part.tensor) not in self._reached]
        layers = defaultdict[tuple[str, str | None], list[bool]](list)
        for part in looked:
            if part.kind == "adapter" and part.layer is not None:
                # All experts of a layer as one, because a step need not use each.
                family = _EXPERT.sub("experts.*", part.layer)
                layers[family, part.adapter].append(id(part.tensor) in self._reached)
        silent = [_told(*key) for key, reached in layers.items() if not any(reached)]
        return GradientWiring(
            steps=self.steps,
            tensors=len(looked),
            reached=len(looked) - len(without),
            unreached=dict(Counter(part.kind for part in without)),
            modules=len(layers),
            silent=len(silent),
            silent_names=silent[:FEW],
            detached=sum(id(part.tensor) not in self._present for part in without),
            compared=self.leftover.compared,
            kept=self.leftover.kept,
            rateless=self.rateless,
            backward=0 if self.steps else self.leftover.arrived,
            narrow=self._lost[0],
            unmoved=self._lost[1],
            rows=self.invocations.rows,
            invoked=self.invocations.invoked,
        )


def _told(layer: str, adapter: str | None) -> str:
    return layer if adapter in {None, "default"} else f"{layer} ({adapter})"
