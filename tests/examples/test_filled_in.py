"""The next command is filled in with what lies beside the adapter, and runs as it is printed."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from tables import every
from tiny_models import causal, save_tokenizer, write_texts

from gradience.cli.main import main
from gradience.telemetry import TelemetryWriter


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's folder: base, rows, and an adapter that a few steps on them trained, as PEFT saves it."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("trained")
    causal().save_pretrained(place / "base")
    save_tokenizer(place / "base")
    texts = write_texts(place / "texts.txt", 40).read_text().splitlines()
    (place / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lora = peft.LoraConfig(r=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(place / "base"), lora)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(4, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(place / "adapter", save_embedding_layers=False)
    return place


def recipe(data: str) -> str:
    return f"base_model: base\nadapter: lora\nmicro_batch_size: 1\ndatasets:\n  - path: {data}\n    type: completion\n"


def named(run: Path, base: str | None) -> None:
    """Let the adapter's config name another base."""
    config = run / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base}))


def nothing(run: Path) -> None:
    """Leave what training left."""


def below(run: Path) -> None:
    (run / "recipe.yaml").write_text(recipe("rows.jsonl"))


def outside(run: Path) -> None:
    shutil.move(run / "rows.jsonl", run.parent / "rows.jsonl")
    (run / "recipe.yaml").write_text(recipe("../rows.jsonl"))


def two(run: Path) -> None:
    below(run)
    (run / "other.yaml").write_text(recipe("texts.txt"))


def logged(run: Path) -> None:
    named(run, None)
    with TelemetryWriter(run / "run.jsonl") as log:
        log.run_start({"model_name": "owner/model"})


def gone(run: Path) -> None:
    named(run, "of-another-machine")


def above(run: Path) -> None:
    shutil.copytree(run / "base", run / "its base")
    named(run, "./its base")


def within(run: Path) -> None:
    shutil.copytree(run / "base", run / "adapter" / "its base")
    shutil.copytree(run / "base", run / "its base")
    named(run, "its base")


def itself(run: Path) -> None:
    shutil.copy(run / "base" / "config.json", run / "adapter")
    named(run, "adapter")


def bare(run: Path) -> None:
    (run / "rows").mkdir()
    named(run, "rows")


def first(run: Path) -> None:
    named(run, "distilbert-base-uncased")


def like_first(run: Path) -> None:
    named(run, "distilbert-base-uncased-mine")


@every(
    ("change", "base", "texts", "said"),
    [
        (nothing, "{base}", "TEXTS", "TEXTS by a file of rows"),
        (below, "{base}", "{run}/rows.jsonl", None),
        (outside, "{base}", "TEXTS", "TEXTS by a file of rows"),
        (two, "{base}", "TEXTS", "TEXTS by a file of rows"),
        (logged, "owner/model", "TEXTS", "TEXTS by a file of rows"),
        (gone, "MODEL", "TEXTS", "MODEL by the base model and TEXTS by a file of rows"),
        (above, "{run}/its base", "TEXTS", "TEXTS by a file of rows"),
        (within, "{run}/adapter/its base", "TEXTS", "TEXTS by a file of rows"),
        (itself, "MODEL", "TEXTS", "MODEL by the base model and TEXTS by a file of rows"),
        (bare, "MODEL", "TEXTS", "MODEL by the base model and TEXTS by a file of rows"),
        (first, "distilbert-base-uncased", "TEXTS", "TEXTS by a file of rows"),
        (like_first, "MODEL", "TEXTS", "MODEL by the base model and TEXTS by a file of rows"),
    ],
)
def test_the_next_command_has_what_is_known_and_the_line_after_it_what_is_not(
    trained, change, base, texts, said, tmp_path_factory, capsys
):
    run = shutil.copytree(trained, tmp_path_factory.mktemp("case") / "run")
    change(run)
    assert main(["audit", str(run / "adapter")]) == 0
    lines = capsys.readouterr().out.splitlines()
    line, after = lines[-2:] if said else (lines[-1], None)
    argv = shlex.split(line.removeprefix("Next: gradience "))
    given = dict(zip(argv[2::2], argv[3::2], strict=True))  # after the verb and the adapter
    stands = {"base": trained / "base", "run": run}
    assert (given["--base"], given["--data"]) == (base.format(**stands), texts.format(**stands))
    assert after == (said and f"    Replace {said}.")
    if said is None:
        assert main(argv) == 0, capsys.readouterr().err
        assert Path(given["--out"], "adapter_config.json").is_file()


def saved(base: Path, out: Path, **settings: object) -> Path:
    """An adapter as PEFT saves it, whose update is not zero."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(out)
    return out


def test_a_folder_that_is_named_by_a_dot_has_one_above(trained, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    above(run)
    monkeypatch.chdir(run / "adapter")
    main(["audit", "."])
    assert "gradience resize . --base '../its base' --data TEXTS" in capsys.readouterr().out


@every(
    "commands",
    [
        ("check --adapter {run}/adapter --serve vllm",),
        ("check {run}/recipe.yaml --serve vllm",),
        ("merge {run}/adapter {run}/adapter --check",),
        ("monitor {run} --json",),
        ("fleet audit {run} --out {run}/fleet", "fleet show {run}/fleet --serve vllm"),
    ],
)
def test_every_verb_that_names_a_base_finds_it_above_the_adapter(trained, commands, tmp_path, capsys):
    run = tmp_path / "run"
    saved(trained / "base", run / "adapter", use_dora=True)
    shutil.copytree(trained / "base", run / "mine")
    named(run, "./mine")
    (run / "recipe.yaml").write_text(recipe("rows.jsonl").replace(" base", " ./mine") + "peft_use_dora: true\n")
    out_of_memory(run / "run.jsonl", "./mine")
    for command in commands:
        main(command.format(run=run).split())
    said = " ".join(capsys.readouterr().out.split())
    assert f"--base {run}/mine " in said.replace("\\", "")
    assert "--base MODEL" not in said


@every(
    ("settings", "engine", "wanted"),
    [
        ({"use_dora": True}, "vllm", "--to peft --out {out} --base {base} --rank 4"),
        ({"use_rslora": True}, "ollama", "--to peft --out {out}"),
        ({}, "mlx", "--to mlx --out {out}"),
    ],
)
def test_the_conversion_that_check_names_runs_as_it_is_printed(trained, settings, engine, wanted, tmp_path, capsys):
    adapter = saved(trained / "base", tmp_path / "an adapter", **settings)
    main(["check", "--peft-dir", str(adapter), "--serve", engine, "--json"])
    report = json.loads(capsys.readouterr().out)
    actions = [item["action"] or "" for item in (*report["findings"], *report["readings"])]
    [command] = [text.partition(" (")[0] for text in actions if "gradience convert" in text]
    out = tmp_path / "an adapter-new"
    expected = f"gradience convert ADAPTER {wanted}".split()
    stands = {"ADAPTER": str(adapter), "{out}": str(out), "{base}": str(trained / "base")}
    assert shlex.split(command) == [stands.get(word, word) for word in expected]
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert out.is_dir()


HELD_OUT = "test_datasets:\n  - path: rows.jsonl\n    type: completion\n"


@every(
    ("names", "base", "data"),
    [
        (("base", "base"), "{base}", "{rows}"),
        (("base", None), "MODEL", "{rows}"),
        (("base", "base"), "{base}", ""),
    ],
)
def test_the_bench_that_merge_check_names_has_the_base_of_all_and_each_ones_rows(
    trained, names, base, data, tmp_path, capsys
):
    rows = []
    for place, name in enumerate(names, 1):
        adapter = saved(trained / "base", tmp_path / str(place) / "adapter")
        if name is None:
            named(adapter.parent, None)
        if data:
            shutil.copy(trained / "rows.jsonl", adapter.parent)
            (adapter.parent / "recipe.yaml").write_text(recipe("rows.jsonl") + HELD_OUT)
        rows.append(str(adapter.parent / "rows.jsonl") if data else f"HELDOUT_{place}")
    assert main(["merge", *(str(tmp_path / str(place) / "adapter") for place in (1, 2)), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Next, "))
    argv = shlex.split(lines[at].partition(": ")[2])
    assert argv[argv.index("--base") + 1] == base.format(base=trained / "base")
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--data"] == rows
    lacking = ["MODEL by the base model"] * (base == "MODEL")
    lacking += ["HELDOUT_1, HELDOUT_2 each by a file of held-out rows"] * (not data)
    assert lines[at + 1 :] == ([f"    Replace {' and '.join(lacking)}."] if lacking else [])


def out_of_memory(log: Path, base: str) -> Path:
    with TelemetryWriter(log) as run:
        run.run_start({"model_name": base})
        for step in range(1, 40):
            run.train_step(step, loss=2.0)
        run.run_end("error", reason="OutOfMemoryError")
    return log


@every(("base", "said"), [("owner/model", "SIZE by "), ("of-another-machine", "MODEL by the base model and SIZE by ")])
def test_what_a_log_tells_is_in_the_command_of_a_detector(base, said, tmp_path, capsys):
    log = out_of_memory(tmp_path / "run.jsonl", base)
    main(["monitor", str(tmp_path), "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    [verify] = [item["verify"] for item in findings if "--memory" in item["verify"]]
    shown = base if "/" in base else "MODEL"
    size = "the device's memory, such as 24GiB"
    assert verify == f"gradience check {log} --base {shown} --memory SIZE before the next run (replace {said}{size})"
