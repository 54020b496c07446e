"""Whether the learning rates that a log shows explain the size of an update: trainings drawn at random, on CPU.

    python benchmarks/sizes.py OUT [--draws 29] [--others FOLDER...]

Each draw trains a tiny model with LoRA, in seconds: family, width, targets, rank, scaling, rates, schedule, length and
optimizer are random. The first 16 were there when the threshold of SIZ331 was chosen; the others were only judged. A
fault is a rate that the log does not show, rates 30 to 300 times as high, or a start from a trained adapter.

Printed are the size of lora_B over the sum of the logged rates, as `diagnose` judges it, and that of the update over
s sum(lr) sqrt(d_out r / 3), by half, fault and optimizer; and how many would be found if lora_B were doubled or
tenfold. A run is sane if it has no fault and its held-out loss fell. Draws that exist are not trained again. Of other
folders, with an adapter, its log and its training arguments, both ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from msgspec.structs import replace
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import VOCABULARY, Row, classified, sentences
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    get_scheduler,
)
from transformers.trainer_utils import set_seed

from gradience import diagnose
from gradience.folder.runs import read_run
from gradience.rules.joins.symptoms import OUTGROWN, rms_of_b, sum_of_rates

ATTENTION: Final = {
    "llama": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "bert": ["query", "value"],
    "gpt2": ["c_attn"],
    "neox": ["query_key_value"],
    "distilbert": ["q_lin", "v_lin"],
}
SHAPES: Final = {  # width, layers
    "llama-64": (64, 2),
    "llama-160": (160, 1),
    "opt-96": (96, 1),
    "bert-48": (48, 3),
    "bert-128": (128, 1),
    "gpt2-64": (64, 2),
    "neox-128": (128, 1),
    "distilbert-80": (80, 2),
}
CLASSIFIERS: Final = frozenset({"bert", "distilbert"})
HELD_OUT: Final = 128
COMMON: Final = 5  # shapes; the others are in a quarter of the draws
CHOSEN_BY: Final = 16  # draws
MATRIX: Final = 2  # axes


def _config(family: str, width: int, layers: int) -> Any:
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    deep = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64}
    match family:
        case "llama":
            return LlamaConfig(**common, **deep, num_key_value_heads=2, intermediate_size=3 * width)
        case "opt":
            return OPTConfig(**common, **deep, ffn_dim=4 * width, word_embed_proj_dim=width)
        case "neox":
            return GPTNeoXConfig(**common, **deep, intermediate_size=4 * width)
        case "gpt2":
            return GPT2Config(**common, n_embd=width, n_layer=layers, n_head=4, n_positions=64)
        case "bert":
            return BertConfig(**common, **deep, intermediate_size=4 * width, num_labels=4)
        case _:
            size = {"dim": width, "n_layers": layers, "n_heads": 4, "hidden_dim": 4 * width}
            return DistilBertConfig(**common, **size, max_position_embeddings=64, num_labels=4)


def _fresh(family: str, width: int, layers: int) -> Any:
    auto = AutoModelForSequenceClassification if family in CLASSIFIERS else AutoModelForCausalLM
    return auto.from_config(_config(family, width, layers))


@cache
def _pretrained(family: str, width: int, layers: int, kept: Path) -> Any:
    """The weights of a model that knows the old language, or other names of the classes, from 150 steps of AdamW."""
    if kept.is_file():
        return torch.load(kept)
    set_seed(11)
    model = _fresh(family, width, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = _rows(family, 32 * 150, 11, language="base")
    random.Random(11).shuffle(rows)  # noqa: S311  # no secret
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        model(**{name: torch.stack([row[name] for row in part]) for name in ("input_ids", "labels")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), kept)
    return model.state_dict()


def _rows(family: str, count: int, seed: int, language: str = "new") -> list[Row]:
    if family not in CLASSIFIERS:
        return sentences(language, count, seed)
    rows = classified(4, count, seed, shuffled=False)
    turned = 0 if language == "new" else 1  # the adapter learns other names of the same classes
    return [{"input_ids": row["input_ids"], "labels": (row["labels"] + turned) % 4} for row in rows]


def draw(index: int) -> dict[str, Any]:
    """One training's settings; they follow from the index alone."""
    rng = random.Random(f"size {index}")  # noqa: S311  # seeded on purpose
    new = index % 2 == 1 and rng.choice([True, False])
    shape = rng.choice([*SHAPES][COMMON:] if new else [*SHAPES][:COMMON])
    width, layers = SHAPES[shape]
    rank = rng.choice([1, 2, 4, 8, 16, 32])
    fault = rng.choices(["none", "hidden", "hot", "continued"], [0.64, 0.12, 0.12, 0.12])[0]
    return {
        "index": index,
        "family": shape.partition("-")[0],
        "width": width,
        "layers": layers,
        "r": rank,
        "alpha": rng.choice([rank, 2 * rank, 16, 32]),
        "rslora": rng.choice([True, False, False, False]),
        "all_linear": rng.choice([True, False]),
        "lr": math.exp(rng.uniform(math.log(2e-4), math.log(1e-2))),
        "steps": round(math.exp(rng.uniform(math.log(15), math.log(400)))),
        "batch": rng.choice([4, 8, 32]),
        "schedule": rng.choice(["linear", "cosine", "constant", "constant_with_warmup"]),
        "warmup": rng.choice([0, 0, 5]),
        "beta2": rng.choice([0.999, 0.999, 0.98, 0.95]),
        "decay": rng.choice([0.0, 0.01, 0.1]),
        "optimizer": rng.choices(["adamw", "lion", "sgd", "muon"], [0.8, 0.1, 0.05, 0.05])[0],
        "fault": fault,
        "times": math.exp(rng.uniform(math.log(30), math.log(300))),
        "every": rng.choice([1, 5, 20, 1000]),  # the last gives a row at the end only
    }


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675): each step is the sign of an average of the gradients."""

    def __init__(self, params: Any, lr: float, decay: float) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["decay"]).add_(
                    (0.9 * mean + 0.1 * p.grad).sign(), alpha=-float(group["lr"])
                )
                mean.lerp_(p.grad, 0.01)


def _optimizer(given: dict[str, Any], trained: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    match given["optimizer"]:
        case "lion":
            return Lion(trained, lr, given["decay"])
        case "sgd":
            return torch.optim.SGD(trained, lr=lr, momentum=0.9)
        case "muon":
            return torch.optim.Muon([p for p in trained if p.ndim == MATRIX], lr=lr)
        case _:
            return torch.optim.AdamW(trained, lr=lr, betas=(0.9, given["beta2"]), weight_decay=given["decay"])


def _loss(model: Any, rows: list[Row]) -> torch.Tensor:
    loss: torch.Tensor = model(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}).loss
    return loss


def train(given: dict[str, Any], folder: Path, start: Path | None = None) -> None:
    """Train one draw into a folder: the adapter, its log and arguments as the Trainer names them, held-out losses."""
    set_seed(given["index"])
    family, steps = given["family"], given["steps"]
    shape = family, given["width"], given["layers"]
    model = _fresh(*shape)
    model.load_state_dict(_pretrained(*shape, folder.parent / "bases" / f"{shape}.pt"))
    if start is None:
        lora = LoraConfig(
            r=given["r"],
            lora_alpha=given["alpha"],
            use_rslora=given["rslora"],
            target_modules="all-linear" if given["all_linear"] else ATTENTION[family],
            task_type="SEQ_CLS" if family in CLASSIFIERS else "CAUSAL_LM",
            fan_in_fan_out=family == "gpt2",
        )
        model = get_peft_model(model, lora)
    else:
        model = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    held, rows = (_rows(family, HELD_OUT, 10_000 + given["index"]), _rows(family, 800, given["index"]))
    with torch.no_grad():
        before = float(_loss(model.eval(), held))
    lr = given["lr"] * (given["times"] if given["fault"] == "hot" else 1.0)
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = _optimizer(given, trained, lr)
    schedule = get_scheduler(given["schedule"], optimizer, num_warmup_steps=given["warmup"], num_training_steps=steps)
    history = []
    for step in range(1, steps + 1):
        loss = _loss(model, random.sample(rows, given["batch"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        rate = schedule.get_last_lr()[0]
        if given["fault"] == "hidden" and 3 * step > 2 * steps:  # in the last third, unseen by the log
            optimizer.param_groups[0]["lr"] *= given["times"]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % min(given["every"], steps) == 0:
            history.append(
                {"step": step, "epoch": step * given["batch"] / 800, "loss": float(loss), "learning_rate": rate}
            )
    model.save_pretrained(str(folder))
    state = {"global_step": steps, "max_steps": steps, "log_history": history}
    arguments = {"optim": "adamw_torch", "learning_rate": lr, "max_steps": steps, "logging_steps": given["every"]}
    with torch.no_grad():
        losses = {"before": before, "after": float(_loss(model.eval(), held))}
    for name, content in (("trainer_state", state), ("training_args", arguments), ("draw", {**given, **losses})):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def make(index: int, out: Path) -> Path:
    """The folder of a draw, trained if it is not there. A continued one begins where a longer training ended."""
    given, folder = draw(index), out / f"{index:03d}"
    if (folder / "draw.json").is_file():
        return folder
    start = None
    if given["fault"] == "continued":
        start = out / f"{index:03d}-first"
        train({**given, "steps": 10 * given["steps"] if given["steps"] < 40 else 400, "fault": "none"}, start)
    train(given, folder, start)
    return folder


class Ratios(NamedTuple):
    """What `diagnose` judges, an earlier formula for the whole update, and whether `diagnose` names it.

    Both are over the sum of the learning rates as logged, of any optimizer; None if nothing was learnt or logged.
    """

    lora_b: float | None
    update: float | None
    named: bool


def ratios_of(folder: Path, *, transposed: bool = False) -> Ratios:
    """The ratios of a folder with an adapter, its log and its training arguments."""
    report, run = diagnose(folder), read_run(folder).run
    named = any(piece.id == "outgrown" for cause in report.findings for piece in cause.pieces)
    if run is None or report.audit is None or report.check is None:
        return Ratios(None, None, named)
    config, modules = report.check.config, [m for m in report.audit.modules if m.state == "ok"]
    logged = sum_of_rates(run, replace(config, optimizer=replace(config.optimizer, name="adamw")))
    moved = rms_of_b(modules)
    if not logged or moved is None:
        return Ratios(None, None, named)
    unit = sum(float(m.scaling) ** 2 * m.shape[1 if transposed else 0] * m.r / 3.0 for m in modules)
    norm = math.hypot(*(float(m.frobenius_norm or 0.0) for m in modules))
    return Ratios(moved / logged, norm / math.sqrt(unit) / logged, named)


def _kind(one: dict[str, Any]) -> str:
    """The group of a draw in the table."""
    learnt = one["after"] < one["before"]
    how = ("sane" if learnt else "not learnt") if one["fault"] == "none" else one["fault"]
    return f"{how}, {one['optimizer']}"


def main() -> None:
    """Train what is missing and print a line for each draw, and the groups."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=29)
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    groups: dict[tuple[str, str], list[Ratios]] = {}
    for index in range(args.draws):
        folder = make(index, args.out)
        one = json.loads((folder / "draw.json").read_text())
        found = ratios_of(folder, transposed=one["family"] == "gpt2")
        half = "to tune on" if index < CHOSEN_BY else "unseen"
        print(f"{index} {half} {one['family']}-{one['width']} {_kind(one)} {one['steps']} steps: {found}")
        groups.setdefault((half, _kind(one)), []).append(found)
    for (half, kind), some in sorted(groups.items()):
        of_b, of_update = ([r or 0.0 for r in column] for column in list(zip(*some, strict=True))[:2])
        many = [sum(times * r > OUTGROWN.value for r in of_b) for times in (1, 2, 10)]
        ends = [f"{min(of):.2g} to {max(of):.2g}" for of in (of_b, of_update)]
        print(
            f"{half}: {kind}: {len(some)} runs, {sum(r.named for r in some)} named; lora_B {ends[0]}, update {ends[1]}"
        )
        print(f"    lora_B over {OUTGROWN.value} as is, doubled, tenfold: {many}")
    places = {file.parent for root in args.others for file in root.rglob("adapter_model.safetensors")}
    for folder in sorted(place for place in places if (place / "trainer_state.json").is_file()):
        print(f"{folder}: {ratios_of(folder)}")


if __name__ == "__main__":
    main()
