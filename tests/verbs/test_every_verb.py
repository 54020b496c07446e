"""One run as every verb shows it: a command line, its exit code, and lines of its screen (or of its one-line error).

The run is golden/readme's, which the README's first command wrote; adapters, a base and a series of checkpoints are
those of golden/drawn: stored, since their decimals are shown. The commands follow one another in one folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from readme_blocks import clone_with_run
from screens import shell
from tables import every

from gradience.cli.main import COMMANDS, GROUPS

DRAWN = Path(__file__).parents[1] / "golden" / "drawn"
TABLE = [
    (
        "resize runs/toy/peft --rank 4 --out cut",
        0,
        """
        Parameters: 16.4K -> 8.2K
        File:       0.14 MB -> 0.10 MB
        Error:      12.4% of the whole update, at most 16.9% of a module
              8>4       16.9%     1.0K  distilbert.transformer.layer.0.attention.k_lin
              8>4        9.6%     1.0K  distilbert.transformer.layer.1.attention.q_lin
        """,
    ),
    (
        "resize runs/toy/peft --energy 0.9 --dry-run",
        0,
        """
        Parameters: 16.4K -> 3.6K
        Error:      23.7% of the whole update, at most 27.7% of a module
          r=8 -> 2: 4
          r=8 -> 1: 3
          r=8 -> 3: 1
        """,
    ),
    ("resize runs/toy/peft --rank 4 --out cut", 2,
     "cut exists already (choose another name, or replace it with --force)"),
    (
        "merge runs/toy/peft cut --out merged --method svd --rank 4",
        0,
        """
        +0.5 x peft: 8 modules, r=8..8
        +0.5 x cut: 8 modules, r=4..4
        To:     merged  (F32, 8.2K parameters)
        Error:  6.26% of what svd defines (Frobenius norm, all modules)
          8+4 > 4              8.56%  distilbert.transformer.layer.0.attention.k_lin
        """,
    ),
    (
        "merge runs/toy/peft cut --check --weights=0.5,0.25",
        0,
        """
          peft: weight 0.5, norm(w dW) 3.143; 0.2% of M is orthogonal to its update
          cut: weight 0.25, norm(w dW) 1.559; 0.7% of M is orthogonal to its update
        Would write: linear, r=8, F32, 16.4K parameters; error none beyond the rounding of float32
        Signs: 5.8% conflict, 0.3% of the magnitude cancels; all read
             0.5%      7.0%         +0.986  distilbert.transformer.layer.0.attention.k_lin
        """,
    ),
    (
        "compare runs/toy/peft cut",
        0,
        """
        peft: LORA  r=8  scaling=4  8 modules  norm(dW)=6.286
          Whole update: cosine 0.992, norm ratio 0.992, change 12.4% of the first's norm
              4        1.000      0.031       1.000      0.031
          Energy by layer: 0.2% moved (layer 0 55.7%>55.5%, 1 44.3%>44.5%)
            +0.986    0.986    1.000   1.000  distilbert.transformer.layer.0.attention.k_lin
        """,
    ),
    (
        "convert runs/toy/peft --to mlx --dry-run",
        2,
        (
            "MLX-LM's file cannot hold all of runs/toy/peft/adapter_model.safetensors: "
            "classifier.bias, classifier.weight, pre_classifier.bias and 1 more (weights that were trained whole; it "
            "holds factors alone) (leave them out with --drop, or merge the adapter into the base instead)"
        ),
    ),
    (
        "audit --peft-dir cut --verbose",
        0,
        """
          Update size: norm 6.24, 0.195 of freshly initialised weights of these shapes
          Energy rank k@90% (p50/p90): 1.5/2
          01. attn r=4   util=25.9%  sr=1.04  k@90%=1  distilbert.transformer.layer.0.attention.v_lin
          layer   0    4 modules  sr=1.14  energy=55.5%
          layer   1    4 modules  sr=1.11  energy=44.5%
        """,
    ),
    (
        "check --peft-dir runs/toy/peft --training-dir runs/toy/training --verbose",
        0,
        """
          Adapter:    LoRA  r=8 alpha=32 scaling=4 dropout=0.05
          Optimizer:  adamw_torch lr=1e-3 linear weight_decay=0.01
          Batch:      16 x 1 accumulation = 16 per step and process
          Early step: 3.2e-02 (scaling x r x lr; shipped recipes for supervised training 3e-3 to 1e-2)
          KEY001, NUM001, PAD001, 4 of REC001 to REC006, QNT001: about a run to come; this one has
        """,
    ),
    (
        "monitor runs/toy/run.jsonl --verbose",
        0,
        """
        Status:  ok, step 240 of 240
        Rows:    240 (lowest loss 0.01327 at step 165)
        Peak LR: 1e-3
          Suggested r (median/p90): 2/3, after training; verify with eval
        """,
    ),
    (
        "diagnose runs/toy --verbose",
        0,
        """
          config  runs/toy/training/training_args.json: settings in the log, adapter_config.json,
              training_args.json
          log     runs/toy/run.jsonl: 240 rows, 10 evaluations, status ok
          weights runs/toy/peft: 8 modules, trained (in peft)
        """,
    ),
    (
        "validate runs/toy/run.jsonl",
        0,
        """
        runs/toy/run.jsonl: valid, 253 lines
          events: run_start 1, eval 10, train_step 240, metrics 1, run_end 1
        """,
    ),
    ("why runs/toy/run.jsonl runs/toy/run.jsonl", 2,
     "runs/toy/run.jsonl holds one run that was not resumed: there is nothing to compare it with"),
    ("import runs/toy/run.jsonl --out x.jsonl", 2,
     "runs/toy/run.jsonl is a log of gradience already (gradience monitor reads it as it is)"),
    (
        "rules lr001",
        0,
        """
        LR001: learning rate of full fine-tuning
        Confidence: 0.80 (a judgement)
        When:       peak lr <= 5e-05, unless scaling x r x lr >= 0.0032 (MLX-LM: in a digit of the rate)
          low_lr = 5e-05 (peak learning rate): default of transformers' TrainingArguments; just above the
              sweep's 4e-5
        """,
    ),
    ("rules XX999", 2, "unknown rule 'XX999' ('gradience rules' lists them)"),
    ("report runs/toy --out page.md", 0, "wrote page.md (5 KB, 0 findings)"),
    (
        "fleet audit runs --out fleet",
        0,
        """
        Fleet: fleet
        1 adapter: 1 with numbers, 0 that cannot be read
        """,
    ),
    (
        "fleet show fleet",
        0,
        """
        1 adapter, 8 modules, 0.13 MB of tensors
        Verdicts:   trained 1
        Bases:      toy-distilbert-2x128 1
        Ranks:      8 1
        """,
    ),
    (
        "compare series",
        0,
        """
               10     107.6        0.8099             -       -       2.48    1.31   2.00
               20     107.6        0.9561        0.9462   32.8%       2.48    1.31   2.00
               30     118.6        1.0000        0.9561   32.7%       2.62    1.40   2.33
          checkpoint-10   1.00   0.95   0.81
            +0.894     1.34    0.904   1.000  layers.1.v_proj
        """,
    ),
    (
        "audit --peft-dir dora --base base --intruders --verbose",
        0,
        """
          Energy by type (modules): attn 51.8% (2), mlp 48.2% (1)
          UDR norm2(dW)/norm2(W): median 1.45, largest 1.86 (layers.0.up_proj)
          Intruder dimensions:    4 in 2 of 3 modules (k=7, eps=0.5; 0 at 0.3, 4 at 0.5, 14 at 0.7)
        In the file: lora pair 82.2% (0.00 MB, 6 tensors), magnitude 17.8% (0.00 MB, 3 tensors)
        """,
    ),
    (
        "merge one two --out ties --method ties --density 0.5 --verbose",
        0,
        """
        +1 x one: 3 modules, r=2..3
        +1 x two: 3 modules, r=4..5
          2+5 > 5              9.64%  layers.1.v_proj
          0+4 > 4               zero  layers.1.q_proj
        Not in all adapters (2): layers.0.up_proj, layers.1.q_proj
        """,
    ),
    (
        "merge one two --check",
        0,
        """
          one: weight 0.5, norm(w dW) 34.97; 36.0% of M is orthogonal to its update
          two: weight 0.5, norm(w dW) 25.98; 65.2% of M is orthogonal to its update
        one and two: cosine -0.013
        Signs: 50.4% conflict, 24.1% of the magnitude cancels; all read
        """,
    ),
    (
        "convert dora --base base --rank 2 --out plain --verbose",
        0,
        """
        From: dora/adapter_model.safetensors  (LORA DoRA rsLoRA)
        To:   plain  (PEFT LoRA)
        Parameters: 163 -> 102
        Update: relative error 42.55% of the whole, at most 46.94% of a module (Frobenius norm)
           4>2      46.94%  dense      layers.1.v_proj
        """,
    ),
    (
        "resize dora --base base --energy 0.84 --dry-run",
        0,
        """
        Criterion:  energy >= 0.84
        Parameters: 134 -> 51
        Error:      14.4% of the whole update, at most 21.6% of a module
          r=2 -> 1: 2
              4>1        8.4%       16  layers.1.v_proj
        """,
    ),
    (
        "import state/trainer_state.json --out imported.jsonl",
        0,
        """
        Source: state/trainer_state.json (trainer-state)
        Wrote:  imported.jsonl
          steps 1 to 30: 30 rows of training, 3 evaluations
          ended: ok (the planned steps were made)
        Next: gradience monitor imported.jsonl
        """,
    ),
    (
        "monitor state/trainer_state.json",
        0,
        """
        Story: learns; loss 1.95 -> 0.5; eval loss 1.2 against 0.525 in training; eval loss still falls at the end
        Status:  ok (the planned steps were made), step 30 of 30
        Rows:    30
        Peak LR: 1e-4  (largest logged)
          Gap:       eval loss 1.2, training loss 0.525 (step 30)
        """,
    ),
    (
        "why runs/toy/run.jsonl imported.jsonl",
        0,
        """
        The runs part at step 1, where the lr differs: the learning rate (optimizer.lr: 0.001 and 0.0001).
          lr         0.0  |  0.0001
          length         training.max_steps: 240 and 30
          the rows of each step: record the digests (digests=True)
        """,
    ),
]  # fmt: skip


def lay_out() -> None:
    """Write what the commands read beside the run."""
    shutil.copytree(DRAWN, ".", dirs_exist_ok=True)
    rows = [
        {"loss": 2.0 - 0.05 * step, "grad_norm": 1.0, "learning_rate": 1e-4, "step": step, "epoch": step / 10}
        for step in range(1, 31)
    ]
    rows += [{"eval_loss": 1.5 - step / 100, "step": step, "epoch": step / 10} for step in (10, 20, 30)]
    state = {"log_history": rows, "global_step": 30, "max_steps": 30, "num_train_epochs": 3}
    Path("state").mkdir()
    Path("state", "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def answers() -> list[tuple[int, str, str]]:
    """The exit code, the screen and the errors of each command of the table."""
    pytest.importorskip("duckdb", reason="needs the fleet extra")
    with clone_with_run():
        lay_out()
        return [shell(f"gradience {command}") for command, _, _ in TABLE]


@every("place", range(len(TABLE)), ids=[command for command, _, _ in TABLE])
def test_a_command_ends_so_and_shows_these_lines(answers, place):
    _, code, lines = TABLE[place]
    ended, out, err = answers[place]
    assert ended == code, err
    if code:
        assert (out, err) == ("", f"gradience: {lines}\n")
        return
    shown = " ".join(out.split())  # where a line is broken is the screen's business
    assert [line for line in lines.strip().splitlines() if " ".join(line.split()) not in shown] == []


def test_these_are_the_commands_and_each_has_its_line_in_the_help():
    commands = "audit bench check compare convert diagnose import merge monitor receipt report resize rules runs schema"
    names = {*commands.split(), "validate", "verify", "why"}
    assert {*COMMANDS} == names
    help_text = shell("gradience --help")[1]
    listed = {line.split()[1] for line in help_text.splitlines() if line.startswith("│ ") and line[2] != " "}
    assert names | {*GROUPS} <= listed
