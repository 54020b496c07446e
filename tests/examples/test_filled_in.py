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
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
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


@every(
    ("change", "base", "texts", "said"),
    [
        (nothing, "{base}", "TEXTS", "TEXTS by a file of rows"),
        (below, "{base}", "{run}/rows.jsonl", None),
        (outside, "{base}", "TEXTS", "TEXTS by a file of rows"),
        (two, "{base}", "TEXTS", "TEXTS by a file of rows"),
        (logged, "owner/model", "TEXTS", "TEXTS by a file of rows"),
        (gone, "MODEL", "TEXTS", "MODEL by the base model and TEXTS by a file of rows"),
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
    given = dict(zip(argv[1::2], argv[2::2], strict=True))
    stands = {"base": trained / "base", "run": run}
    assert (given["--base"], given["--calibrate"]) == (base.format(**stands), texts.format(**stands))
    assert after == (said and f"    Replace {said}.")
    if said is None:
        assert main(argv) == 0, capsys.readouterr().err
        assert Path(given["--out"], "adapter_config.json").is_file()
