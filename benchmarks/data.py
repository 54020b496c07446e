"""``check --data`` beside the tokenizer alone: ``python benchmarks/data.py [--rows N] [--tokenizer FOLDER]``.

* In turns: CPU time of a check of all rows over that of the tokenizer on the same rows in batches, one thread: of the
  tokenizer's process, and of the process beside it, which counts the rows before meanwhile; wall time; and the peak
  resident memory of both. Of a tenth of the rows, and of all. ``--forms`` takes other formats.
* ``--planted``: every planted defect of ``tests/data/planted.py`` in every format, and the other findings.
* ``--overlap``: near pairs that MinHash finds and misses, compared with the similarity of all pairs; its error.
* ``--hook``: CPU time of the batch watch for a micro-batch.

Rows are sentences of the words of this repository's documents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "data"))

Rows = list[dict[str, Any]]


def sentences() -> list[str]:
    """Paragraphs of the documents of this repository."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    parts = [" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text)]
    return [part for part in parts if 40 < len(part) < 300 and "|" not in part]


def made(form: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield rows of a format, of about 1 kB."""
    parts, rng = sentences(), random.Random(1)  # noqa: S311  # rows, no secret
    for i in range(count):
        asked, said = (" ".join(rng.choices(parts, k=3)) for _ in range(2))
        asked = f"{asked} ({i})"
        if form == "messages":
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            yield {"messages": turns}
        elif form == "text":
            yield {"text": f"{asked} {said}"}
        else:
            yield {"prompt": f"{asked} ", "completion": said}


def alone(tokenizer: Any, form: str) -> Callable[[Rows], object]:
    """A function that only makes the tokenizer calls that the trainer makes on these rows."""
    if form == "messages":
        return lambda rows: tokenizer.apply_chat_template([row["messages"] for row in rows], return_dict=True)
    if form == "text":
        return lambda rows: tokenizer([row["text"] + tokenizer.eos_token for row in rows])
    return lambda rows: (
        tokenizer([row["prompt"] for row in rows]),
        tokenizer([row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]),
    )


def spent_by_child() -> tuple[float, float]:
    """CPU seconds, and peak resident MB, of the process that has the tokenizer: the youngest child of the child."""
    pid = str(os.getpid())
    for _ in range(2):
        pid = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak(pid)


def peak(pid: str = "self") -> float:
    """The peak resident MB of a process; that of getrusage begins with what its parent held."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def seconds(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before


def speed(folder: Path, rows: int, place: Path, form: str) -> None:
    """Print what a check takes beside the tokenizer, in turns: of a tenth of the rows three times, of all once."""
    from transformers import AutoTokenizer

    call = alone(AutoTokenizer.from_pretrained(place), form)

    def tokenise(path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            while some := [json.loads(line) for line in islice(file, 256)]:
                call(some)

    for count in (rows // 10, rows):
        path, walls, spent = folder / f"{form}{count}.jsonl", [0.0, 0.0], [0.0] * 3
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in made(form, count))
        rounds = 3 if count < rows else 1
        for _ in range(rounds):
            begun = time.monotonic()
            spent[0] += seconds(lambda path=path: tokenise(path))
            walls[0] += time.monotonic() - begun
            begun = time.monotonic()
            given = [sys.executable, __file__, "--one", str(path), "--tokenizer", str(place)]
            out = subprocess.run(given, check=True, capture_output=True, text=True).stdout.split()
            walls[1] += time.monotonic() - begun
            own, most, its, held = map(float, out)
            spent[1], spent[2] = spent[1] + own, spent[2] + its
        print(
            f"{count:,} rows of {path.stat().st_size / count:.0f} bytes ({form}), times the tokenizer alone "
            f"({1e6 * spent[0] / count / rounds:.0f} us of CPU a row): wall {walls[1] / walls[0]:.2f}; CPU of the "
            f"tokenizer's process {spent[2] / spent[0]:.2f}, beside it {spent[1] / spent[0]:.2f}; peak {most:.0f} MB "
            f"beside it, {held:.0f} MB with the tokenizer",
            flush=True,
        )


def one(path: Path, place: Path) -> None:
    """Check all rows, and print CPU seconds and peak MB of this process and of the tokenizer's."""
    from gradience.verbs.check.data import check_data

    child = [0.0, 0.0]

    def progress(done: int, total: int) -> None:
        if done == total:
            child[:] = spent_by_child()

    own = seconds(lambda: check_data(path, tokenizer=place, samples="all", progress=progress))
    print(own, peak(), *child)


def trained(folder: Path, shelf: Any) -> Path:
    """A tokenizer of 8000 tokens, trained on the same documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    _, named, controls = shelf.STYLES["qwen"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=controls, initial_alphabet=alphabet)
    core.train_from_iterator(sentences(), trainer)
    one = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    one.chat_template = shelf.QWEN
    one.save_pretrained(folder)
    return folder


def planted() -> None:
    from planted import DEFECTS, FORMS, checked

    from gradience.rules.data import DATA_RULES

    severities = {rule.id: rule.severity for rule in DATA_RULES}
    found: dict[str, list[str]] = {}
    others: dict[str, set[str]] = {}
    for name, form in ((name, form) for name, defect in DEFECTS.items() for form in defect.forms):
        with tempfile.TemporaryDirectory() as folder:
            ids = {finding.id for finding in checked(Path(folder), form, DEFECTS[name]).findings}
        rule = DEFECTS[name].rule
        found.setdefault(name, []).append("found" if rule in ids else f"{form} MISSED")
        others.setdefault(name, set()).update(ids - {rule})
    print("| defect | rule | severity | formats | found | what else was then found |\n|---|---|---|---|---|---|")
    for name, results in found.items():
        rule, hits = DEFECTS[name].rule, results.count("found")
        also = ", ".join(sorted(others[name])) or "-"
        print(f"| {name} | {rule} | {severities[rule]} | {len(results)} | {hits} | {also} |")
    false = 0
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            false += len(checked(Path(folder), form, None).findings)
    print(f"\nClean twins: {len(FORMS)} formats, {false} findings.")


def overlap() -> None:
    from gradience.data.overlap import HASHES, NEAR, EvalRows, jaccard, trigrams, words_of

    rng = random.Random(5)  # noqa: S311  # the same
    parts = [part for part in sentences() if len(part.split()) > 20]
    pairs: list[tuple[dict[str, str], dict[str, str]]] = []
    for i in range(3000):
        words = f"{rng.choice(parts)} {rng.choice(parts)} number {i}".split()
        changed = list(words)
        for _ in range(rng.randint(0, 6)):
            changed[rng.randrange(len(changed))] = f"word{rng.randrange(10**6)}"
        pairs.append(({"text": " ".join(words)}, {"text": " ".join(changed)}))
    held_out = EvalRows()
    held_out.read((i, held) for i, (_, held) in enumerate(pairs, 1))
    for train, _ in pairs:
        held_out.compare(train)
    result = held_out.result()
    true = [jaccard(trigrams(words_of(a)), trigrams(words_of(b))) for a, b in pairs]
    near = {i for i, value in enumerate(true, 1) if value >= NEAR}
    equal = {i for i, (a, b) in enumerate(pairs, 1) if words_of(a) == words_of(b)}
    hit = held_out.near_rows - equal
    print(f"near pairs (similarity {NEAR} and more, not equal): {len(near - equal)}; found {len(hit & near)}")
    print(f"found below the similarity: {len(hit - near)}; equal pairs {len(equal)}, found {result.exact.count}")
    for low in (0.8, 0.85, 0.9, 0.95):
        group = {i for i in near - equal if low <= true[i - 1] < low + 0.05}
        print(f"  {low:.2f} to {low + 0.05:.2f}: {len(group & hit)} of {len(group)}")
    print(f"  {HASHES} permutations")


def hook() -> None:
    import torch

    from gradience.hf import watch_batches

    class Fed(torch.nn.Module):
        def forward(self, input_ids: Any = None, **_: Any) -> Any:
            return input_ids

    torch.set_num_threads(1)
    ids = torch.randint(5, 1000, (4, 512))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    plain, model = Fed(), Fed()
    watch = watch_batches(model)

    def microseconds(one: Any, calls: int) -> float:
        return 1e6 * seconds(lambda: [one(**given) for _ in range(calls)]) / calls

    microseconds(model, 10)
    bare = min(microseconds(plain, 20_000) for _ in range(3))
    unwatched = min(microseconds(model, 20_000) for _ in range(3)) - bare
    count = watch._count  # noqa: SLF001  # the part of a watched call that is measured
    ops = min(1e6 * seconds(lambda: count(ids, given)) for _ in range(200))
    print(f"4 rows of 512 tokens: {ops:.0f} us if watched, reductions included; {unwatched:.1f} us with one in 100")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--tokenizer", type=Path)
    options.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--forms", nargs="*", default=["messages"])
    for name in ("planted", "overlap", "hook"):
        options.add_argument(f"--{name}", action="store_true")
    given = options.parse_args()
    chosen = [
        call for name, call in (("planted", planted), ("overlap", overlap), ("hook", hook)) if getattr(given, name)
    ]
    for call in chosen:
        call()
    if given.one:
        one(given.one, given.tokenizer)
    elif not chosen:
        import made as shelf

        with tempfile.TemporaryDirectory() as folder:
            place = given.tokenizer or trained(Path(folder) / "tokenizer", shelf)
            for form in given.forms:
                speed(Path(folder), given.rows, place, form)


if __name__ == "__main__":
    main()
