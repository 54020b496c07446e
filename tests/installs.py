"""What an install promises, tried in it: `python tests/installs.py EXTRA`, where EXTRA may be `base`.

Every module is imported, and every verb makes its smallest real call. A call that needs another extra must end with
exit code 2 and one line that says how to install it, before it has made a file.

`--hide` tries it in an environment that has more: distributions that this install would not bring are hidden.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import pydoc
import struct
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

RUN = Path(__file__).resolve().parent / "golden" / "readme"
NEEDS = {  # the beginnings of modules that need an extra; every install promises all others
    "gradience.hf.": "hf",
    "gradience.models.": "hf",
    "gradience.blocks.html.": "report",
    "gradience.verbs.runs.curves": "report",
    "gradience.verbs.report.weights": "report",
}
OTHERS = {
    "gradience.axolotl",
    "gradience.lightning",
    "gradience.swift",
    "gradience.__main__",
}  # their program brings them
# What an extra brings beyond its name: another extra, or pyarrow, here called columns
HOLDS = {"fleet": {"columns"}, "hf": {"columns"}}


class Call(NamedTuple):
    """A command, and the extra that it needs."""

    argv: str
    extra: str = "base"
    may_find: bool = False  # it may end with 1, for what it found
    child: bool = False  # it works in a process of its own, from which nothing can be hidden


CALLS = (
    Call("--version"),
    Call("check --peft-dir {run}/peft --training-dir {run}/training --task sst2", may_find=True),
    Call("check --data {tmp}/rows.jsonl", may_find=True),
    Call("check --data {tmp}/rows.parquet", "columns", may_find=True, child=True),
    Call("monitor {run}/run.jsonl"),
    Call("import {tmp}/log.csv --out {tmp}/imported.jsonl"),
    Call("audit --peft-dir {run}/peft --top-wasteful 3"),
    Call("audit {run}/peft --base {tmp}/base"),
    Call("diagnose {run}", may_find=True),
    Call("compare {run}/peft {run}/peft"),
    Call("report {run} --out {tmp}/report.md"),
    Call("report {run} --out {tmp}/report.html", "report"),
    Call("resize {run}/peft --out {tmp}/resized --rank 2"),
    Call("convert {run}/peft --to mlx --drop --out {tmp}/converted"),
    Call("merge {run}/peft {run}/peft --out {tmp}/merged --method linear"),
    Call("merge {run}/peft {run}/peft --check", may_find=True),
    Call("verify {tmp}/merged-base --base {tmp}/base --adapter {run}/peft", may_find=True),
    Call("bench {run}/peft --base {tmp}/base --data {tmp}/texts.jsonl --candidates svd:2 --out {tmp}/bench", "hf",
         may_find=True),
    Call("rules LR001"),
    Call("validate {run}/run.jsonl"),
    Call("schema telemetry"),
    Call("fleet audit {run} --out {tmp}/fleet --workers 1", "fleet"),
    Call("fleet show {tmp}/fleet", "fleet"),
    Call("fleet query {tmp}/fleet select(1)", "fleet"),
    Call("monitor {run}/run.jsonl {run}/run.jsonl"),
    Call("runs {run} --out {tmp}/runs", "fleet"),
    Call("runs query {run} select(1) --out {tmp}/runs", "fleet"),
    Call("runs best {run} --metric train/loss --out {tmp}/runs", "fleet"),
)  # fmt: skip


class Fault(Exception):  # noqa: N818  # what is wrong with an install
    """A promise that was not kept."""


def distributions(extra: str) -> set[str]:
    """Return the normalised names of all distributions that the install brings, by the clone's own project file."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = [("gradience", extra)]
    seen = set()
    while waiting:
        name, of = waiting.pop()
        if (name, of) in seen:
            continue
        seen.add((name, of))
        found.add(name)
        try:
            of_extra = project["optional-dependencies"].get(of, [])
            required = (project["dependencies"] + of_extra) if name == "gradience" else metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in required:
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", of)):
                for more in requirement.extras or {""}:
                    waiting += [(canonicalize_name(requirement.name), more), (canonicalize_name(requirement.name), "")]
    return found


class Visible(PathFinder):
    """Finds only modules of the standard library, of no distribution, or of one that the install brings."""

    hidden: frozenset[str] = frozenset()

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec, or None if it is hidden."""
        if fullname.partition(".")[0] in cls.hidden:
            return None
        return super().find_spec(fullname, path, target)


def hide_others(extra: str) -> None:
    """Hide every installed distribution that the install would not bring."""
    from packaging.utils import canonicalize_name

    kept = distributions(extra)
    Visible.hidden = frozenset(
        module
        for module, owners in metadata.packages_distributions().items()
        if not kept & {canonicalize_name(owner) for owner in owners} and module != "gradience"
    )
    sys.meta_path[:] = [Visible if finder is PathFinder else finder for finder in sys.meta_path]
    every = metadata.MetadataPathFinder.find_distributions

    def visible(context: metadata.DistributionFinder.Context) -> Iterable[metadata.Distribution]:
        return (found for found in every(context) if canonicalize_name(found.metadata["Name"]) in kept)

    metadata.MetadataPathFinder.find_distributions = staticmethod(visible)  # type: ignore[assignment]


def import_everything(extras: set[str]) -> None:
    """Import each module, and use the package as at a prompt.

    Raises:
        Fault: a module that the install promises cannot be imported.
    """
    import gradience

    for info in pkgutil.walk_packages(gradience.__path__, "gradience."):
        need = next((extra for start, extra in NEEDS.items() if info.name.startswith(start)), "base")
        if info.name in OTHERS or need not in extras:
            continue
        try:
            importlib.import_module(info.name)
        except ImportError as error:
            raise Fault(f"import {info.name}: {error}") from error
    exec("from gradience import *", {})  # noqa: S102  # as a person would
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        pydoc.help(gradience)
    if "audit_adapter" not in shown.getvalue():
        raise Fault("help(gradience) does not show audit_adapter")
    if [name for name, _ in inspect.getmembers(gradience)] != dir(gradience):
        raise Fault("a name that dir(gradience) lists cannot be had")


def try_call(call: Call, extras: set[str], tmp: Path) -> None:
    """Run one command.

    Raises:
        Fault: it neither works nor says in one line, and before it has made a file, what to install.
    """
    from gradience.cli.main import main

    before = set(tmp.rglob("*"))
    argv = call.argv.format(run=RUN, tmp=tmp).split()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
    said = err.getvalue().strip()
    if call.extra in extras:
        if code not in ({0, 1, 3} if call.may_find else {0}):
            raise Fault(f"gradience {call.argv}: exit code {code}: {said[:2000]}")
        return
    if code != 2 or "pip install -e '.[" not in said or "\n" in said:
        raise Fault(f"gradience {call.argv}: exit code {code}, expected 2 and what to install: {said[:2000]}")
    if made := set(tmp.rglob("*")) - before:
        raise Fault(f"gradience {call.argv}: made {sorted(path.name for path in made)} before it said what to install")


def write_inputs(tmp: Path, extras: set[str]) -> None:
    """Write a base model and its merge, some rows, and a table of losses."""
    import numpy as np

    (tmp / "rows.jsonl").write_text('{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}\n')
    texts = ("a", "b", "a b", "b a", "a a b", "b b a", "a b b", "b a a")
    rows = [json.dumps({"text": text, "label": len(text.split()) % 2}) for text in texts]
    (tmp / "texts.jsonl").write_text("\n".join(rows) + "\n")
    (tmp / "log.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
    if "columns" in extras:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]}), tmp / "rows.parquet")
    else:
        (tmp / "rows.parquet").write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    tensors = _tensors(RUN / "peft" / "adapter_model.safetensors")
    scale = 32 / 8
    config = {"model_type": "distilbert", "dim": 128, "n_layers": 2, "n_heads": 2, "hidden_dim": 256}
    base = _whole_model(tmp / "base", config) if "hf" in extras else {}
    merged = {**base}
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
            base[f"{stem}.weight"] = np.random.default_rng(0).normal(size=(b.shape[0], a.shape[1])).astype("float32")
            merged[f"{stem}.weight"] = base[f"{stem}.weight"] + np.float32(scale) * (b @ a)
    for folder, held in (("base", base), ("merged-base", merged)):
        (tmp / folder).mkdir(exist_ok=True)
        (tmp / folder / "config.json").write_text(json.dumps(config))
        _write(tmp / folder / "model.safetensors", held)


def _whole_model(folder: Path, size: dict) -> dict:
    """Write the tokenizer of a classifier of that size, and return its weights: what runs a model needs all of them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    size["vocab_size"], size["max_position_embeddings"] = 4, 16
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))  # noqa: S106  # no secret
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")  # noqa: S106
    tokenizer.save_pretrained(folder)
    kind = transformers.DistilBertConfig(**{name: value for name, value in size.items() if name != "model_type"})
    model = transformers.DistilBertForSequenceClassification(kind)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _tensors(path: Path) -> dict:
    import numpy as np

    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data, "<f4", np.prod(item["shape"], dtype=int), 8 + size + item["data_offsets"][0]).reshape(
            item["shape"]
        )
        for name, item in header.items()
    }


def _write(path: Path, tensors: dict) -> None:
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def main() -> int:
    """Try the install that is asked for; return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", help="base, hf, data, fleet or report")
    parser.add_argument("--hide", action="store_true", help="hide what this install would not bring")
    asked = parser.parse_args()
    extras = {"base", asked.extra, *HOLDS.get(asked.extra, ())}
    if asked.hide:
        hide_others("" if asked.extra == "base" else asked.extra)
    warnings.simplefilter("error")
    warnings.filterwarnings("default", module=r"(?!gradience)")
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        attempts = [lambda: import_everything(extras), lambda: write_inputs(tmp, extras)]
        attempts += [
            lambda call=call: try_call(call, extras, tmp) for call in _ordered(CALLS) if not (asked.hide and call.child)
        ]
        for attempt in attempts:
            try:
                attempt()
            except Fault as fault:
                faults.append(str(fault))
    sys.stdout.write("\n".join([*faults, f"{asked.extra}: {len(faults)} promises not kept, {len(CALLS)} calls\n"]))
    return 1 if faults else 0


def _ordered(calls: Iterable[Call]) -> list[Call]:
    """Return the calls with those first that make what others read."""
    return sorted(calls, key=lambda call: "fleet audit" not in call.argv)


if __name__ == "__main__":
    sys.exit(main())
