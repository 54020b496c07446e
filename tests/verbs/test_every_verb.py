"""One run as every verb shows it: a command line, its exit code, and lines of its screen (or of its one-line error).

The run is golden/readme's, which the README's first command wrote; the commands follow one another in one folder.
"""

from __future__ import annotations

import pytest
from readme_blocks import clone_with_run
from screens import shell
from tables import every

TABLE = [
    (
        "resize runs/toy/peft --rank 4 --out cut",
        0,
        """
        To:   cut
        Criterion:  rank 4
        Parameters: 16.4K -> 8.2K
        File:       0.14 MB -> 0.10 MB
        Error:      12.4% of the whole update, at most 16.9% of a module
          r=8 -> 4: 8
              8>4       16.9%     1.0K  distilbert.transformer.layer.0.attention.k_lin
              8>4        9.6%     1.0K  distilbert.transformer.layer.1.attention.q_lin
        """,
    ),
    (
        "resize runs/toy/peft --energy 0.9 --dry-run",
        0,
        """
        To:   (dry run: nothing is written)
        Criterion:  energy >= 0.9
        Parameters: 16.4K -> 3.6K
        Error:      23.7% of the whole update, at most 27.7% of a module
          r=8 -> 2: 4
          r=8 -> 1: 3
          r=8 -> 3: 1
        """,
    ),
    (
        "resize runs/toy/peft --rank 4 --out cut",
        2,
        "cut exists already (choose another name, or replace it with --force)",
    ),
    (
        "merge runs/toy/peft cut --out merged --method svd --rank 4",
        0,
        """
        +0.5 x peft: 8 modules, r=8..8
        +0.5 x cut: 8 modules, r=4..4
        Method: svd
        To:     merged  (F32, 8.2K parameters)
        Error:  6.26% of what svd defines (Frobenius norm, all modules)
          8+4 > 4              8.56%  distilbert.transformer.layer.0.attention.k_lin
        A small error says that the sum was kept, not that the tasks were: verify on held-out data.
        """,
    ),
    (
        "merge-check runs/toy/peft cut --weights=0.5,0.25",
        0,
        """
        M = 0.5 x peft + 0.25 x cut
          peft  weight 0.5: 50% left, norm(w dW) 3.143
          cut   weight 0.25: 25% left, norm(w dW) 1.559
          [INFO] MRG405: peft and cut are nearly identical updates (cosine 0.99): their weights add up.
          peft  keeps 0.746 = 0.5 + 0.246; rest of M orthogonal to it 0.2%
          cut   keeps 0.750 = 0.25 + 0.500; rest of M orthogonal to it 0.7%
        peft and cut: cosine 0.992, scale 2.02 : 1
          shared directions phi(4,4): outputs 1.000 (chance 0.031), inputs 1.000 (chance 0.031)
        Signs: 5.8% conflict (4.0% of Gaussian entries), 0.3% of the magnitude cancels; all read
             0.5%      7.0%         +0.986  distilbert.transformer.layer.0.attention.k_lin
        Config: lora_alpha: 32  |  16
        Config: r: 8  |  4
        """,
    ),
    (
        "compare runs/toy/peft cut",
        0,
        """
        peft: LORA  r=8  scaling=4  8 modules  norm(dW)=6.286
        cut: LORA  r=4  scaling=4  8 modules  norm(dW)=6.237
        Configs differ in 2 fields:
          Whole update: cosine 0.992, norm ratio 0.992, change 12.4% of the first's norm
              4        1.000      0.031       1.000      0.031
          Energy by layer: 0.2% moved (layer 1 44.3%>44.5%, 0 55.7%>55.5%)
            +0.986    0.986    1.000   1.000  distilbert.transformer.layer.0.attention.k_lin
        """,
    ),
    (
        "convert runs/toy/peft --to mlx --dry-run",
        2,
        (
            "MLX-LM's LoRA has no place for 4 tensors of runs/toy/peft/adapter_model.safetensors: "
            "base_model.model.classifier.bias, base_model.model.classifier.weight, "
            "base_model.model.pre_classifier.bias and 1 more (leave them out with --drop, or keep the adapter as it is)"
        ),
    ),
    (
        "audit --peft-dir cut --layers",
        0,
        """
        Verdict: TRAINED (all 8 modules carry a finite, non-zero update)
          LoRA params: 8.2K
          Update size: norm 6.24, 0.195 of freshly initialised weights of these shapes
          Stable rank (mean):    1.12
          Utilization (mean):    28.0%
          Energy rank k@90% (p50/p90): 1.5/2
        Suggested rank (now 4; verify with eval): 2 for most modules (-0.02 MB), 2 for the tail (-0.02 MB)
          01. attn r=4   util=25.9%  sr=1.04  k@90%=1  distilbert.transformer.layer.0.attention.v_lin
          layer   0    4 modules  sr=1.14  energy=55.5%
          layer   1    4 modules  sr=1.11  energy=44.5%
        """,
    ),
    (
        "check --peft-dir runs/toy/peft --training-dir runs/toy/training --verbose",
        0,
        """
          Model:      toy-distilbert-2x128
          Task:       classification, by task_type SEQ_CLS
          Adapter:    LoRA  r=8 alpha=32 scaling=4 dropout=0.05
          Targets:    k_lin, v_lin, q_lin, out_lin
          Optimizer:  adamw_torch lr=0.001 linear weight_decay=0.01
          Batch:      16 x 1 accumulation = 16 per step and process
          Length:     240 steps, warmup 4.2%
          Early step: 3.2e-02 (scaling x r x lr; shipped recipes for supervised training 3e-3 to 1e-2)
          EPO001: max_steps overrides epochs, so how often the data repeats is not known
          BAT001: the number of processes is not given; with one, the batch is 16
        """,
    ),
    (
        "monitor runs/toy/run.jsonl --verbose",
        0,
        """
        Status:  ok, step 240 of 240
        Loss:    0.7026 -> 0.138 (medians) in 240 rows  (lowest 0.01327 at step 165)
        Peak LR: 0.001
          Train PPL: 1.16
          Test  PPL: 1.19
          Gap:       1.03x
          Train Acc: 96.9%
          Test  Acc: 95.3%
          Stable rank (mean): 1.14
          Utilization (mean): 14.2%
          Suggested r (median/p90): 2/3, after training; verify with eval
          [INFO] DIV103: The loss spikes to 0.6254 at step 111, from 0.2101 in the rows before.
              confidence: 0.50
              evidence: the log: 6.2 times the usual row-to-row change
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
          [INFO] DIV103 (log): The loss spikes to 0.6254 at step 111, from 0.2101 in the rows before.
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
    (
        "why runs/toy/run.jsonl runs/toy/run.jsonl",
        2,
        "runs/toy/run.jsonl holds one run that was not resumed: there is nothing to compare it with",
    ),
    (
        "import runs/toy/run.jsonl --out x.jsonl",
        2,
        "runs/toy/run.jsonl is a log of gradience already (gradience monitor reads it as it is)",
    ),
    (
        "rules lr001",
        0,
        """
        LR001: learning rate of full fine-tuning
        Severity:   warning
        Confidence: 0.80 (a judgement)
        Applies to: a configuration (gradience check)
        When:       peak lr <= 5e-05, unless scaling x r x lr >= 0.0032 (MLX-LM: in a digit of the rate)
          low_lr = 5e-05 (peak learning rate): default of transformers' TrainingArguments; just above the
              sweep's 4e-5
        """,
    ),
    ("report runs/toy --out page.md", 0, "wrote page.md (4 KB, 2 findings)"),
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
]


@pytest.fixture(scope="module")
def answers() -> list[tuple[int, str, str]]:
    """The exit code, the screen and the errors of each command of the table."""
    pytest.importorskip("duckdb", reason="needs the fleet extra")
    with clone_with_run():
        return [shell(f"gradience {command}") for command, _, _ in TABLE]


@every("place", range(len(TABLE)), ids=[command for command, _, _ in TABLE])
def test_a_command_ends_so_and_shows_these_lines(answers, place):
    _, code, lines = TABLE[place]
    ended, out, err = answers[place]
    assert ended == code, err
    if code:
        assert (out, err) == ("", f"gradience: {lines}\n")
        return
    wanted = [line.removeprefix(" " * 8).rstrip() for line in lines.strip("\n").splitlines() if line.strip()]
    shown = [line.rstrip() for line in out.splitlines()]
    assert [line for line in wanted if line not in shown] == []
