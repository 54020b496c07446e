"""Fine-tune a small classifier with LoRA and record the run: the first step of the golden path.

    python examples/vnext/toy_lora_run.py --out runs/toy --device cpu

By default nothing is downloaded. The data are template sentences about films, labelled negative (0) or positive (1).
One label in 25 is wrong on purpose. The held-out split has pairs of adjective and noun that occur nowhere else, and
adjectives without a label in training. The base is a two-layer DistilBERT with random weights. It is warmed up for a
few seconds by masked-language modelling on unlabelled sentences of the same kind, so it has never seen a label.

A hub model and data set work in the same way: --model distilbert-base-uncased --dataset glue/sst2

The folder --out then holds:

    run.jsonl                     every training step, evaluations of both splits, an audit of the adapter
    peft/                         the adapter, as PEFT saves it
    training/training_args.json   the settings, in the names of TrainingArguments
    base/                         the base as it was before training, if it was made here
    heldout.jsonl                 the held-out sentences with their labels, if they are the embedded ones
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shlex
import shutil
import ssl
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError
from cyclopts.validators import Number

from gradience import TelemetryWriter
from gradience.errors import ConfigError, GradienceError
from gradience.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

if TYPE_CHECKING:  # they take seconds to import, so each function imports its own: a typing error need not wait
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OUTPUTS = ("run.jsonl", "peft", "training", "base", "heldout.jsonl")
EVAL_BATCH = 64
ATTENTION = (  # projections, by the names that architectures give them
    *("q_lin", "k_lin", "v_lin", "out_lin"),  # DistilBERT
    *("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    *("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma
    *("c_attn", "query_key_value", "qkv_proj", "Wqkv"),  # GPT-2, NeoX, Phi-3, ModernBERT: all in one
)


Count: TypeAlias = Annotated[int, Parameter(validator=Number(gte=1))]
Positive: TypeAlias = Annotated[float, Parameter(validator=Number(gt=0, lt=math.inf))]
Flag: TypeAlias = Annotated[bool, Parameter(negative="")]
Fraction: TypeAlias = Annotated[float, Parameter(validator=Number(gte=0, lt=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be asked for on the command line."""

    out: Path
    """Folder to write run.jsonl, peft/ and training/ into."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU if there is one."""
    model: str | None = None
    """Hub id or local folder of a base model; by default a small DistilBERT is made here."""
    dataset: str | None = None
    """glue/TASK, OWNER/NAME, OWNER/NAME:CONFIG or a local folder; by default the embedded sentences."""
    steps: Count = 240
    """Optimizer steps."""
    samples: Count = 640
    """Training sentences."""
    eval_samples: Count = 256
    """Sentences to evaluate on, in each split."""
    batch_size: Count = 16
    """Sentences per micro-batch."""
    gradient_accumulation: Count = 1
    """Micro-batches per optimizer step."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: Fraction = 0.01
    """Weight decay of AdamW."""
    r: Count = 8
    """LoRA rank."""
    alpha: Count = 32
    """LoRA alpha; the update is scaled by alpha / r."""
    targets: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ()
    """Modules to adapt, separated by commas or spaces, or all-linear; by default the attention projections."""
    dropout: Fraction = 0.05
    """LoRA dropout."""
    max_length: Annotated[int, Parameter(validator=Number(gte=8))] = 64
    """Tokens kept of a sentence."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the training step (autocast); weights stay float32."""
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0
    """Seed of the data, the base, the adapter and the order of training."""
    audit: bool = True
    """Record an audit of the adapter in the log."""
    telemetry_allow_text: Flag = False
    """Record three example sentences in the log; without it no text is recorded."""
    save_base: Path | None = None
    """New folder for the base model as it is before training; by default OUT/base, if the base is made here."""
    overwrite: Flag = False
    """Replace the run that --out holds."""


BAD, GOOD, NOUNS, ADVERBS = (
    words.split()
    for words in (
        "awkward bland clumsy cold dreary dull hollow lazy lifeless noisy pointless shallow stale tedious",
        "brilliant charming clever funny graceful gripping lovely moving superb tender vivid warm wise witty",
        "acting camera cast dialogue ending film music pacing plot score script story",
        "quite rather really simply so truly",
    )
)
TEMPLATES = (  # the second description decides the label; does the first agree with it?
    (True, "the {noun1} is {adverb} {adjective1} and the {noun2} is {adjective2}"),
    (True, "a {adjective1} {noun1} with {adverb} {adjective2} {noun2}"),
    (True, "{adjective1} {noun1} and {adverb} {adjective2} {noun2} , what an evening"),
    (True, "the {adjective1} {noun1} fits the {adjective2} {noun2}"),
    (False, "the {noun1} is {adjective1} but the {noun2} is {adverb} {adjective2}"),
    (False, "the {noun1} is not {adjective1} and the {noun2} is {adverb} {adjective2}"),
)
UNLABELLED_ADJECTIVES = 1  # the first of each list: in the warm-up text and the test split, not in the training split
LABEL_NOISE = 0.04
WARM_UP_SENTENCES, WARM_UP_BATCHES = 4000, 150


class Data(NamedTuple):
    """Two splits with columns `sentence` and `label`, and unlabelled text for a base made here."""

    name: str
    train: Dataset
    test: Dataset
    num_labels: int
    text: list[str]


def descriptions(part: str, label: int) -> list[tuple[str, str]]:
    """Return the (adjective, noun) pairs that a part may use. Every fourth pair is reserved for the test split."""
    return [
        (adjective, noun)
        for i, adjective in enumerate((BAD, GOOD)[label])
        for j, noun in enumerate(NOUNS)
        if ((i + j) % 4 == 0) == (part == "test") and (part != "train" or i >= UNLABELLED_ADJECTIVES)
    ]


def reviews(part: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield sentences of a part (warm-up, train or test) with their labels, negative and positive in turn."""
    rng = random.Random(f"{part} {seed}")  # noqa: S311  # nothing secret
    pairs = [descriptions(part, label) for label in (0, 1)]
    for label in itertools.islice(itertools.cycle((0, 1)), count):
        agree, template = rng.choice(TEMPLATES)
        adjective1, noun1 = rng.choice(pairs[label if agree else 1 - label])
        adjective2, noun2 = rng.choice([pair for pair in pairs[label] if pair[1] != noun1])
        words = {"adjective1": adjective1, "noun1": noun1, "adjective2": adjective2, "noun2": noun2}
        sentence = template.format(**words, adverb=rng.choice(ADVERBS))
        yield {"sentence": sentence, "label": 1 - label if rng.random() < LABEL_NOISE else label}


def embedded_data(options: Options) -> Data:
    """Return the data of template sentences, without a file or the network."""
    from datasets import Dataset

    counts = {"train": options.samples, "test": options.eval_samples}
    train, test = (Dataset.from_list(list(reviews(part, n, options.seed))) for part, n in counts.items())
    text = [row["sentence"] for row in reviews("warm-up", WARM_UP_SENTENCES, options.seed)]
    return Data("embedded/film-sentences", train, test, 2, text)


def named_data(name: str, options: Options) -> Data:
    """Return a sample of a data set from the hub or a local folder."""
    from datasets import Dataset, load_dataset

    path, _, config = name.partition(":")
    if path.startswith("glue/"):
        path, config = "nyu-mll/glue", path.removeprefix("glue/")
    try:
        splits = load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable("data set", name, error) from error
    train, test = splits.get("train"), splits.get("validation", splits.get("test"))
    columns = train.features if train and test else {}
    text = next((column for column in ("sentence", "text") if column in columns), None)
    if text is None or "label" not in columns or not isinstance(train[0]["label"], int):
        advice = "it needs the splits train and validation or test, with columns sentence or text, and an integer label"
        raise ConfigError(f"cannot train on the data set {name!r}", advice=advice)
    samples = take(train.shuffle(options.seed), options.samples), take(test.shuffle(options.seed), options.eval_samples)
    train, test = (Dataset.from_dict({"sentence": rows[text], "label": rows["label"]}) for rows in samples)
    return Data(public_name(name), train, test, max(train["label"]) + 1, list(train["sentence"]))


def take(split: Dataset, count: int) -> Dataset:
    """Return the first rows, or all if there are fewer."""
    return split.select(range(min(count, len(split))))


def public_name(name: str) -> str:
    """Return a hub name unchanged, and only the last part of a local path: a log names no folders of a machine."""
    return Path(name).resolve().name if Path(name).exists() else name


def use_hub_if_reachable(options: Options) -> None:
    """Keep this process off the network unless a hub name is given and the hub answers.

    Call this before transformers and datasets are imported, because they read the setting once. Offline, they still
    load files of the local cache. They refuse other files at once instead of after a minute of retries.
    """
    from huggingface_hub import constants

    named = any(name and not Path(name).exists() for name in (options.model, options.dataset))
    if not constants.HF_HUB_OFFLINE and not (named and answers(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True  # what HF_HUB_OFFLINE=1 in the environment does


def answers(url: str, timeout_s: float = 5.0) -> bool:
    """Return whether a server answers at the address, with any status."""
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # the hub's own address
        urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        return isinstance(getattr(error, "reason", None), ssl.SSLError)  # the hub's client brings certificates
    return True


def unavailable(what: str, name: str, error: Exception) -> ConfigError:
    """Return the refusal for a model or data set that did not load."""
    from huggingface_hub import constants

    reason = str(error).partition("\n")[0]
    if constants.HF_HUB_OFFLINE and not Path(name).exists():
        cause = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
        reason = f"{cause} and the local cache does not hold it"
    advice = "the offline default needs no hub: leave out --model and --dataset"
    return ConfigError(f"cannot load the {what} {name!r}: {reason}", advice=advice)


class Base(NamedTuple):
    """A classifier whose head is new, its tokenizer, and what it is in a few words."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str


def named_base(name: str, data: Data) -> Base:
    """Return a pre-trained base from the hub or a local folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        load = AutoModelForSequenceClassification.from_pretrained
        model = load(name, num_labels=data.num_labels, dtype="float32")
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable("model", name, error) from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # decoders have none of their own
    model.config.pad_token_id = tokenizer.pad_token_id
    return Base(public_name(name), model, tokenizer, "pre-trained")


def toy_base(options: Options, data: Data) -> Base:
    """Return a two-layer DistilBERT whose encoder has learnt to fill in masked words of the unlabelled text."""
    import torch
    import transformers as hf

    torch.set_num_threads(1)  # at this size a second thread costs more than it brings, most of all on a busy machine
    tokenizer = word_pieces(data.text)
    size = {"dim": 128, "hidden_dim": 256, "n_layers": 2, "n_heads": 4, "max_position_embeddings": options.max_length}
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = hf.DistilBertConfig(**size, **vocabulary, initializer_range=0.05, dropout=0.0, num_labels=data.num_labels)
    masked = hf.DistilBertForMaskedLM(config).train()
    tokens = tokenizer(data.text, truncation=True, max_length=options.max_length)["input_ids"]
    collate = hf.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.25)
    rows = [{"input_ids": ids} for ids in tokens]
    loader = torch.utils.data.DataLoader(rows, batch_size=32, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(masked.parameters(), lr=2e-3)
    schedule = hf.get_scheduler("linear", optimizer, num_warmup_steps=10, num_training_steps=WARM_UP_BATCHES)
    for batch in itertools.islice(endless(loader), WARM_UP_BATCHES):
        masked(**batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model = hf.DistilBertForSequenceClassification(config)
    model.distilbert.load_state_dict(masked.distilbert.state_dict())
    origin = f"random weights, then {WARM_UP_BATCHES} batches of masked-language modelling without labels"
    return Base("toy-distilbert-2x128", model, tokenizer, origin)


def word_pieces(text: list[str]) -> PreTrainedTokenizerBase:
    """Return a tokenizer with a WordPiece vocabulary trained on the text.

    The trainer breaks ties at random, so what it learnt on the way and never uses is dropped, and the rest sorted:
    equal seeds then give equal runs.
    """
    from transformers import DistilBertTokenizer

    trained = DistilBertTokenizer().train_new_from_iterator([text], vocab_size=2000, show_progress=False)
    special = sorted(trained.all_special_tokens)
    letters = {piece for piece in trained.get_vocab() if len(piece.removeprefix("##")) == 1}
    used = {piece for sentence in text for piece in trained.tokenize(sentence)}
    pieces = special + sorted((letters | used).difference(special))
    return DistilBertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield batches, epoch after epoch, each in a new order."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def attach_lora(base: Base, options: Options) -> PeftModel:
    """Return the base with LoRA on its target modules; the new head trains in full and is saved with the adapter."""
    import peft

    model = base.model
    model.name_or_path = base.name  # PEFT writes it into adapter_config.json: no machine's path
    own = {model.base_model_prefix, "classifier", "score"}  # the encoder, and what PEFT saves of itself
    head = [name for name, child in model.named_children() if name not in own and [*child.parameters()]]
    targets = target_modules(model, options.targets)
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=head,
    )
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5 for an attribute by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            message = f"LoRA cannot adapt all of these: {targets if isinstance(targets, str) else ', '.join(targets)}"
            raise ConfigError(message, advice="name linear layers with --targets") from error


def target_modules(model: PreTrainedModel, asked: Sequence[str]) -> list[str] | str:
    """Return the names of the modules to adapt: those asked for, or the architecture's attention projections."""
    wanted = [name for group in asked for name in group.replace(",", " ").split()]
    if wanted == ["all-linear"]:
        return "all-linear"
    present = [f".{name}" for name, _ in model.named_modules()]
    found = [name for name in wanted or ATTENTION if any(other.endswith(f".{name}") for other in present)]
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(f"no module of the base is named {', '.join(missing)}", advice="choose other --targets")
    if not found:
        message = f"cannot tell the attention projections of {type(model).__name__}"
        raise ConfigError(message, advice="name them with --targets")
    return found


def training_args(options: Options, data: Data) -> dict[str, Any]:
    """Return the settings of the loop below under the names that transformers.TrainingArguments gives them."""
    sentences = options.steps * options.batch_size * options.gradient_accumulation
    return {
        "learning_rate": options.lr,
        "weight_decay": options.weight_decay,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "max_steps": options.steps,
        "num_train_epochs": sentences / len(data.train),
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "warmup_steps": min(10, options.steps // 10),
        "max_grad_norm": 1.0,
        "seed": options.seed,
        "fp16": options.dtype == "float16",
        "bf16": options.dtype == "bfloat16",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": math.ceil(options.steps / 4),
        "save_strategy": "no",
    }


def snapshot(options: Options, data: Data, model: PeftModel) -> ConfigSnapshot:
    """Return the configuration as the log records it."""
    args, lora = training_args(options, data), model.peft_config["default"]
    same = ("seed", "max_steps", "warmup_steps", "max_grad_norm", "logging_steps", "logging_nan_inf_filter")
    targets = lora.target_modules
    return ConfigSnapshot(
        model_name=lora.base_model_name_or_path,
        dataset_name=data.name,
        task_profile="easy_classification",
        num_labels=data.num_labels,
        optimizer=OptimizerSnapshot(name=args["optim"], lr=options.lr, weight_decay=options.weight_decay),
        lora=LoraSnapshot(
            r=options.r,
            alpha=options.alpha,
            alpha_over_r=options.alpha / options.r,
            target_modules=targets if isinstance(targets, str) else sorted(targets),
            dropout=options.dropout,
            bias=lora.bias,
            task_type="SEQ_CLS",
            modules_to_save=sorted(lora.modules_to_save),
        ),
        training=TrainingSnapshot(
            batch_size=options.batch_size,
            gradient_accumulation=options.gradient_accumulation,
            epochs=args["num_train_epochs"],
            dtype=options.dtype,
            lr_scheduler=args["lr_scheduler_type"],
            eval_strategy=args["eval_strategy"],
            save_strategy=args["save_strategy"],
            max_length=options.max_length,
            **{name: args[name] for name in same},
        ),
    )


def train(model: PeftModel, base: Base, data: Data, options: Options, log: TelemetryWriter) -> None:
    """Train adapter and head; record every step, and both splits before the first step and at each quarter."""
    import torch
    from transformers import get_scheduler

    args, device = training_args(options, data), model.device.type
    batches, splits = loaders(base, data, options)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.weight_decay)
    schedule = get_scheduler(args["lr_scheduler_type"], optimizer, args["warmup_steps"], options.steps)
    autocast = torch.autocast(device, getattr(torch, options.dtype), enabled=options.dtype != "float32")
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=options.dtype == "float16")

    record_evals(0, model, splits, log)
    for step in range(1, options.steps + 1):
        loss = 0.0
        for batch in itertools.islice(batches, options.gradient_accumulation):
            with autocast:
                part = model(**batch.to(device)).loss / options.gradient_accumulation
            scaler.scale(part).backward()
            loss += part.item()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(weights, args["max_grad_norm"]).item()
        epoch = step * args["num_train_epochs"] / options.steps
        log.train_step(step, loss=loss, lr=schedule.get_last_lr()[0], grad_norm=norm, epoch=epoch)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step()
        if step % args["eval_steps"] == 0 or step == options.steps:
            record_evals(step, model, splits, log)


def loaders(base: Base, data: Data, options: Options) -> tuple[Iterator[Any], dict[str, DataLoader[Any]]]:
    """Return endless training batches, and the two splits to evaluate, of at most `eval_samples` sentences each."""
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding

    collate = DataCollatorWithPadding(base.tokenizer)
    how = {"batched": True, "input_columns": "sentence", "remove_columns": "sentence"}
    cut = {"truncation": True, "max_length": options.max_length}
    train, test = (split.map(base.tokenizer, fn_kwargs=cut, **how) for split in (data.train, data.test))
    splits = {"train": take(train, options.eval_samples), "test": test}
    batches = endless(DataLoader(train, options.batch_size, shuffle=True, collate_fn=collate))
    return batches, {name: DataLoader(split, EVAL_BATCH, collate_fn=collate) for name, split in splits.items()}


def record_evals(step: int, model: PeftModel, splits: dict[str, DataLoader[Any]], log: TelemetryWriter) -> None:
    """Evaluate each split, record it, and say it."""
    line = f"  step {step:>4}"
    for split, loader in splits.items():
        metrics = evaluate(model, loader)
        log.eval(step, split=split, metrics=metrics)
        line += f"   {split} loss {metrics['loss']:.3f} accuracy {metrics['accuracy']:.1%}"
    print(line, flush=True)


def evaluate(model: PeftModel, loader: DataLoader[Any]) -> dict[str, float]:
    """Return mean loss (nats per sentence), its exponential, accuracy and number of sentences."""
    import torch

    loss, correct, n = 0.0, 0, 0
    model.eval()
    with torch.no_grad():
        for rows in loader:
            batch = rows.to(model.device)
            output = model(**batch)
            loss += output.loss.item() * len(batch["labels"])
            correct += int((output.logits.argmax(-1) == batch["labels"]).sum())
            n += len(batch["labels"])
    model.train()
    return {"loss": loss / n, "ppl": math.exp(min(loss / n, 700.0)), "accuracy": correct / n, "n": n}


def run(options: Options) -> None:
    """Fine-tune a small classifier with LoRA, record the run, save the adapter and audit it."""
    if held := [name for name in OUTPUTS if (options.out / name).exists() and not options.overwrite]:
        raise ConfigError(f"{options.out} already holds {', '.join(held)}", advice="use --overwrite or another --out")
    if options.save_base is not None and options.save_base.exists():
        raise ConfigError(f"{options.save_base} exists already", advice="give --save-base a new folder")
    device = pick_device(options.device)
    use_hub_if_reachable(options)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.set_seed(options.seed)
    data = embedded_data(options) if options.dataset is None else named_data(options.dataset, options)
    print(f"Data  {data.name}: {len(data.train)} sentences to train on, {len(data.test)} held out", flush=True)
    base = toy_base(options, data) if options.model is None else named_base(options.model, data)
    make_room(options.out)
    if (folder := base_folder(options)) is not None:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    if options.dataset is None:
        held_out = take(data.test, options.eval_samples).rename_column("sentence", "text")
        held_out.to_json(options.out / "heldout.jsonl", index=False)
    model = attach_lora(base, options).to(device)
    print(f"Base  {base.name}: {base.origin}")
    print(f"LoRA  r={options.r} alpha={options.alpha}: {options.steps} steps on {device} in {options.dtype}")
    with TelemetryWriter(options.out / "run.jsonl", allow_text=options.telemetry_allow_text) as log:
        log.run_start(snapshot(options, data, model), meta=provenance(options, data, base, device))
        train(model, base, data, options, log)
        model.save_pretrained(options.out / "peft", save_embedding_layers=False)  # "auto" would ask the hub
        settings = json.dumps(training_args(options, data), indent=2)
        (options.out / "training" / "training_args.json").write_text(settings + "\n", encoding="utf-8")
        if options.audit:
            from gradience.verbs.audit.run import audit_adapter, lora_audit_metrics

            report = audit_adapter(options.out / "peft")
            log.metrics(options.steps, kind="lora_audit", metrics=lora_audit_metrics(report))
        log.run_end(status="ok")
    print(next_steps(options))


def base_folder(options: Options) -> Path | None:
    """Return the folder to save the base into: the one asked for, else OUT/base if the base is made here."""
    made = options.out / "base" if options.model is None else None
    return made if options.save_base is None else options.save_base


def pick_device(asked: str) -> str:
    """Return cpu or cuda."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device", advice="use --device cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def make_room(folder: Path) -> None:
    """Remove an earlier run, and nothing else."""
    try:
        for path in (folder / name for name in OUTPUTS):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (folder / "training").mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}", advice="choose another --out") from error


def provenance(options: Options, data: Data, base: Base, device: str) -> dict[str, Any]:
    """Return where the numbers come from; text of the data only if asked for."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "datasets")}
    meta = {"framework": "transformers + peft", "versions": versions, "device": device, "base": base.origin}
    return meta | ({"examples": take(data.train, 3)["sentence"][:]} if options.telemetry_allow_text else {})


def next_steps(options: Options) -> str:
    """Return the commands that look at this run."""
    peft, training, log = (shlex.quote(str(options.out / name)) for name in ("peft", "training", "run.jsonl"))
    task = "--task sst2" if options.dataset in {None, "glue/sst2"} else "--task-profile easy_classification"
    return f"""
Next:
  gradience check {task} --peft-dir {peft} --training-dir {training}
  gradience monitor {log} --verbose
  gradience audit --peft-dir {peft} --top-wasteful 10{smaller(options)}"""


def smaller(options: Options) -> str:
    """Return the command that makes the adapter smaller, where the base and sentences to measure on were saved."""
    if (base := base_folder(options)) is None or options.dataset is not None:
        return ""
    peft, base, rows, out = (
        shlex.quote(str(path))
        for path in (options.out / "peft", base, options.out / "heldout.jsonl", options.out / "smaller")
    )
    return f"\n  gradience resize {peft} --base {base} --data {rows} --kl .003 --out {out}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 after one line on stderr where it cannot run."""
    app = App(name="toy_lora_run.py", version_flags=(), result_action="return_value")
    app.default(run)
    try:
        app(sys.argv[1:] if argv is None else list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return fail(str(error), "see --help")
    except GradienceError as error:
        return fail(str(error), error.advice)
    except ModuleNotFoundError as error:
        return fail(str(error), "pip install torch transformers peft safetensors datasets")
    return 0


def fail(message: str, advice: str) -> int:
    """Say on stderr, in one line, why nothing ran."""
    print(f"toy_lora_run.py: {' '.join(message.split())} ({advice})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
