"""How often `gradience verify` is right: models x adapters x what may be served in their place.

`python benchmarks/receipt_models.py FOLDER llama qwen ...` makes and trains the models; `python benchmarks/receipt.py
FOLDER llama qwen ...` serves each adapter rightly and wrongly, judges what is read, and prints the tables. Each reading
is written to FOLDER/readings as it is made, so that a run that was cut off goes on where it ended, and that a change
of the verdicts is judged again without running the models. Thresholds were chosen on `llama` and `qwen`.

Beside it stands the usual test: greedy text of 16 prompts, compared as strings.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from scipy.stats import beta

from gradience.models import LoadedModel, active, load_adapter, load_model
from gradience.models.inputs import read_inputs
from gradience.models.probes import STORED, Probes
from gradience.models.reading import Reading, as_base, read_loaded
from gradience.models.states import adapted, rounded, scaled, without
from gradience.schema.receipt import NoiseOf, Receipt
from gradience.verbs.receipt.run import receipt_of
from gradience.verbs.receipt.targets import examples_of
from gradience.verbs.receipt.verdict import LogProbPairs, conclude

TUNED: Final = ("llama", "qwen")
RIGHT: Final = frozenset({"same", "same_within_quantisation"})
UNTOLD: Final = frozenset({"cannot_tell"})
PROMPT, NEW = 8, 16  # tokens of a prompt, and of its greedy continuation
PARTS = 3  # groups of modules that are left out of each adapter, one of those of a large model
LARGE: Final = frozenset({"smol"})  # of which each kind of fault is tried once, and no layer is left out alone
ROWS: Final = 16  # of a receipt
UNKNOWN = ""  # a target that does not say its dtype

State = Callable[[], AbstractContextManager[Any]]


class Target(NamedTuple):
    """What is served: its name, the state that gives it, its dtype as known, and the verdicts that are right."""

    name: str
    state: State
    precision: str
    right: frozenset[str]
    exact: bool = False

    @property
    def kind(self) -> str:
        """The name without what is particular to one of its kind."""
        return self.name.partition(":")[0]


def both(*states: State) -> State:
    """Return several states at once."""

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for state in states:
                stack.enter_context(state())
            yield

    return entered


@contextmanager
def rewritten(loaded: LoadedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A context in which every matrix of the base is changed."""
    kept = []
    for name, module in loaded.model.named_modules():
        if ".lora_" not in name and getattr(module, "weight", None) is not None and module.weight.ndim == 2:  # a matrix
            kept.append((module.weight, module.weight.data))
            module.weight.data = change(module.weight.data)
    try:
        yield
    finally:
        for weight, data in reversed(kept):
            weight.data = data


def _noisy(weight: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)


def _q4_1(weight: torch.Tensor) -> torch.Tensor:
    """Sixteen levels from the least to the largest of 32 weights: a form that `verify` does not try."""
    flat = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 32)).reshape(-1, 32)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = (high - low).clamp(min=1e-12) / 15
    return (((flat - low) / step).round() * step + low).reshape(-1)[: weight.numel()].reshape(weight.shape)


def targets(
    loaded: LoadedModel, groups: dict[str, frozenset[str]], names: list[str], seed: str, parts: int
) -> Iterator[Target]:
    """Yield what may be served in the adapter's place; `names` are those of other adapters and of checkpoints."""
    layers = adapted(loaded)
    half, int8, nf4, q4_0 = (
        lambda args=args: rounded(loaded, args[0], merged=args[1], heads=args[2])
        for args in (("bfloat16", False, True), ("int8", True, True), STORED["NF4 below the adapter"], STORED["q4_0"])
    )
    yield Target("right, float32", nullcontext, "float32", RIGHT, exact=True)
    yield Target("right, bfloat16", half, "bfloat16", RIGHT)
    yield Target("right, float16", lambda: rewritten(loaded, lambda w: w.half().float()), "float16", RIGHT)
    yield Target("right, bfloat16, not said", half, UNKNOWN, RIGHT)
    yield Target("right, 8 bits, not said", int8, UNKNOWN, RIGHT)
    four = RIGHT | UNTOLD
    yield Target("right in 4 bits, q4_0", q4_0, UNKNOWN, four)
    yield Target("right in 4 bits, NF4", nf4, UNKNOWN, four)
    yield Target("right in 4 bits, NF4 and bfloat16", both(nf4, half), UNKNOWN, four)
    odd: State = lambda: rewritten(loaded, _q4_1)  # noqa: E731  # a state
    yield Target("right in 4 bits, none that is tried", odd, UNKNOWN, four)
    is_scale, is_part, is_base = (frozenset({one}) for one in ("wrong_scale", "part_missing", "the_base"))
    for factor in (0.5, 0.7, 2.0):
        yield Target(f"another scale:{factor}", lambda f=factor: scaled(layers, f), "float32", is_scale, exact=True)
    double: State = lambda: scaled(layers, 2.0)  # noqa: E731  # a state
    yield Target("another scale, 8 bits", both(int8, double), UNKNOWN, is_scale)
    yield Target("another scale in 4 bits", both(nf4, double), UNKNOWN, is_scale | UNTOLD)
    yield Target("another scale in 4 bits, none that is tried", both(odd, double), UNKNOWN, is_scale | UNTOLD)
    chosen = random.Random(seed).sample(list(groups), min(parts, len(groups)))  # noqa: S311  # no secret
    for name in chosen:
        own: State = lambda n=name: without(layers, groups[n])  # noqa: E731  # a state
        yield Target(f"a part missing:{name}", own, "float32", is_part, exact=True)
        yield Target(f"a part missing, 8 bits:{name}", both(int8, own), UNKNOWN, is_part)
    yield Target("a part missing in 4 bits", both(nf4, own), UNKNOWN, is_part | UNTOLD)
    yield Target("a part missing in 4 bits, none that is tried", both(odd, own), UNKNOWN, is_part | UNTOLD)
    base: State = lambda: as_base(loaded)  # noqa: E731  # a state
    yield Target("the base", both(base, half), "bfloat16", is_base)
    yield Target("the base, 8 bits", both(base, int8), UNKNOWN, is_base)
    yield Target("the base in 4 bits", both(base, q4_0), UNKNOWN, is_base | UNTOLD)
    yield Target("the base in 4 bits, none that is tried", both(base, odd), UNKNOWN, is_base | UNTOLD)
    other = frozenset({"another_adapter", "another_checkpoint"})
    yield Target("another base", lambda: rewritten(loaded, _noisy), "float32", other, exact=True)
    for name in names:
        is_checkpoint = "checkpoint" in name
        kind = "an older checkpoint" if is_checkpoint else "another adapter"
        right = frozenset({"another_checkpoint" if is_checkpoint else "another_adapter"})
        own = lambda n=name: active(loaded, n)  # noqa: E731  # a state
        yield Target(f"{kind}:{name}", own, "float32", right, exact=True)
        yield Target(f"{kind}, bfloat16:{name}", both(own, half), "bfloat16", right)
        yield Target(f"{kind}, not said:{name}", both(own, half), UNKNOWN, right)
        if is_checkpoint:
            yield Target(f"{kind} in 4 bits:{name}, q4_0", both(own, q4_0), UNKNOWN, right | UNTOLD)
            yield Target(f"{kind} in 4 bits:{name}, NF4", both(own, nf4), UNKNOWN, right | UNTOLD)


@torch.inference_mode()
def greedy(loaded: LoadedModel, receipt: Receipt) -> list[list[int]]:
    """Return the greedy continuation of the first tokens of each row; empty for a classifier."""
    if loaded.task != "causal-lm":
        return []
    ids = torch.tensor([row.ids[:PROMPT] for row in receipt.rows if len(row.ids) >= PROMPT])
    found = loaded.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW
    )
    return found[:, PROMPT:].tolist()


class Kept:
    """Readings in files. The model is loaded only if one is missing.

    Args:
        base: the base's folder.
        adapter: the adapter's, with rows.jsonl and checkpoints; others beside it are other adapters.
        readings: the folder of the files.
    """

    def __init__(self, base: Path, adapter: Path, readings: Path) -> None:
        self._base, self._adapter, self._folder = base, adapter, readings
        readings.mkdir(parents=True, exist_ok=True)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The base with the adapter, its checkpoints and the other adapters."""
        loaded = load_model(self._base, self._adapter)
        for place in self.places:
            load_adapter(loaded, place, place.name)
        return loaded

    @property
    def places(self) -> list[Path]:
        """Folders of the checkpoints, and of the other adapters."""
        others = sorted(p.parent for p in self._adapter.parent.glob("*/adapter_config.json"))
        return [*sorted(self._adapter.glob("checkpoint-*")), *(p for p in others if p != self._adapter)]

    @cached_property
    def receipt(self) -> Receipt:
        """The adapter's receipt."""
        place = self._folder / "receipt.json"
        if not place.is_file():
            alone = load_model(self._base, self._adapter)
            rows = read_inputs(self._adapter / "rows.jsonl", alone, most=round(1.5 * ROWS)).examples
            place.write_bytes(msgspec.json.encode(receipt_of(alone, rows, rows=ROWS)))
        return msgspec.json.decode(place.read_bytes(), type=Receipt)

    @cached_property
    def groups(self) -> dict[str, frozenset[str]]:
        """The groups of the adapter's modules; other adapters that are loaded beside it may have more."""
        place = self._folder / "groups.json"
        if not place.is_file():
            found = Probes(load_model(self._base, self._adapter), []).groups
            place.write_text(json.dumps({name: sorted(paths) for name, paths in found.items()}))
        groups = {name: frozenset(paths) for name, paths in json.loads(place.read_text()).items()}
        is_large = self._base.parent.name in LARGE
        return {name: paths for name, paths in groups.items() if not (is_large and name.startswith("layer "))}

    def read(self, name: str, make: Callable[[], Reading]) -> Reading:
        """Return the reading of that name, made if there is none yet."""
        place = self._folder / f"{name.replace('/', '_')}.npy"
        if not place.is_file():
            draft = place.with_suffix(".part.npy")
            np.save(draft, np.concatenate(make()))
            draft.replace(place)
        lengths = np.cumsum([len(row.base) for row in self.receipt.rows])[:-1]
        return list(np.split(np.load(place), lengths))

    def text(self, name: str, state: State) -> list[list[int]]:
        """Return the greedy text in a state."""
        place = self._folder / f"{name.replace('/', '_')}.json"
        if not place.is_file():
            with state():
                place.write_text(json.dumps(greedy(self.loaded, self.receipt)))
        return json.loads(place.read_text())


def _digest(paths: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest()[:16]


class KeptProbes(Probes):
    """Probes whose readings are in files."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(kept.loaded, examples_of(kept.receipt.rows))
        self._kept = kept
        self.groups = kept.groups

    def parts(self) -> dict[str, Reading]:
        """Return what is read without each group of modules."""
        return {
            name: self._kept.read(f"without {name}", lambda p=paths: super(KeptProbes, self).without(p))
            for name, paths in self.groups.items()
        }

    def without(self, paths: frozenset[str]) -> Reading:
        """Return what is read without these modules."""
        return self._kept.read(f"modules {_digest(paths)}", lambda: super(KeptProbes, self).without(paths))

    def scaled(self, factor: float) -> Reading:
        """Return what is read at another scale."""
        return self._kept.read(f"scale {factor:.6g}", lambda: super(KeptProbes, self).scaled(factor))

    def mistaken(self, form: str, missing: frozenset[str], factor: float) -> Reading:
        """Return what is read from a form in 4 bits after a mistake."""
        name = f"stored {form}" if not missing and factor == 1.0 else f"in {form}, {_digest(missing)}, {factor:.6g}"
        return self._kept.read(name, lambda: super(KeptProbes, self).mistaken(form, missing, factor))

    def noises(self) -> dict[NoiseOf, Reading]:
        """Return what is read in 16 and in 8 bits."""
        formats: tuple[NoiseOf, ...] = ("bfloat16", "int8")
        return {
            to: self._kept.read(f"halved {to}", lambda t=to: self._read(rounded(self._loaded, t))) for to in formats
        }


class Row(NamedTuple):
    """One target's outcome."""

    kind: str
    name: str
    verdict: str
    right: frozenset[str]
    residual: float
    has_same_text: bool | None


def judged(folder: Path, kind: str, adapter: Path) -> Iterator[Row]:
    """Yield the outcome of every target of an adapter."""
    kept = Kept(folder / kind / "base", adapter, folder / "readings" / kind / adapter.name)
    receipt, examples = kept.receipt, examples_of(kept.receipt.rows)
    probes = KeptProbes(kept)
    names = [place.name for place in kept.places]
    if kind in LARGE:
        names = [next(name for name in names if ("checkpoint" in name) == value) for value in (True, False)]
    parts = 1 if kind in LARGE else PARTS
    wanted = kept.text("text right, float32", nullcontext)
    for target in targets(kept.loaded, probes.groups, names, adapter.name, parts):

        def made(target: Target = target) -> Reading:
            return read_loaded(kept.loaded, examples, state=target.state())

        reading = kept.read(f"target {target.name}", made)
        text = kept.text(f"text {target.name}", target.state)
        told = conclude(LogProbPairs(receipt, reading), precision=target.precision, exact=target.exact, probes=probes)
        same = text == wanted if wanted else None
        yield Row(target.kind, target.name, told.verdict, target.right, told.residual or 0.0, same)


def _share(count: int, of: int) -> str:
    """A share with the 95 % interval of Clopper and Pearson."""
    if not of:
        return "-"
    low = beta.ppf(0.025, count, of - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, of - count) if count < of else 1.0
    return f"{count}/{of} ({low:.0%} to {high:.0%})"


def tables(rows: list[Row], title: str) -> Iterator[str]:
    """Yield the lines of a table by kind, and of the sums that the figures of the docs are."""
    yield f"\n{title}"
    yield f"  {'served':<38} {'n':>4} {'right':>6} {'same':>6} {'untold':>7} {'text same':>10}"
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        texts = [row.has_same_text for row in own if row.has_same_text is not None]
        counts = (sum(row.verdict in verdicts for row in own) for verdicts in (RIGHT, UNTOLD))
        right = sum(row.verdict in row.right for row in own)
        same, untold = counts
        yield f"  {kind:<38} {len(own):>4} {right:>6} {same:>6} {untold:>7} {f'{sum(texts)}/{len(texts)}':>10}"
    is_right = {id(row): row.kind.startswith("right") for row in rows}
    for behind in (False, True):
        some = [row for row in rows if ("4 bits" in row.kind) == behind]
        good, wrong = ([row for row in some if is_right[id(row)] == value] for value in (True, False))
        where = "in 4 bits" if behind else "not in 4 bits"
        told = [row for row in wrong if row.verdict not in UNTOLD]
        named = sum(row.verdict in row.right - UNTOLD for row in wrong)
        same, other = (sum(row.verdict in RIGHT for row in good), sum(row.verdict not in RIGHT for row in wrong))
        yield f"  {where}: right targets called same {_share(same, len(good))}"
        yield f"  {where}: wrong targets not called same {_share(other, len(wrong))}"
        yield f"  {where}: cause named right {_share(named, len(wrong))}; of those told {_share(named, len(told))}"
        texts = [row.has_same_text for row in wrong if row.has_same_text is not None]
        yield f"  {where}: wrong targets whose 16 greedy texts are the adapter's {_share(sum(texts), len(texts))}"


def main(folder: Path, kinds: list[str]) -> None:
    """Print a table for each model, and for those of the tuned part and of the unseen part together."""
    torch.set_num_threads(1)
    found: dict[str, list[Row]] = {}
    for kind in kinds:
        found[kind] = []
        for adapter in sorted(p.parent for p in (folder / kind).glob("*/rows.jsonl")):
            for row in judged(folder, kind, adapter):
                found[kind].append(row)
                if row.verdict not in row.right:
                    print(f"{kind} {adapter.name}: {row.name}: {row.verdict} at {row.residual:.4f}", flush=True)
        print("\n".join(tables(found[kind], kind)), flush=True)
    for title, is_tuned in (("tuned on", True), ("unseen", False)):
        some = [kind for kind in kinds if (kind in TUNED) == is_tuned]
        print("\n".join(tables([row for kind in some for row in found[kind]], f"{title}: {', '.join(some)}")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
