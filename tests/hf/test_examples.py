"""The examples of the recorder in other people's loops run, and leave logs that `monitor` reads."""

from __future__ import annotations

import pytest

EXAMPLES = {  # name: (arguments, train rows, split of its last evaluation)
    "hf_trainer": (["--steps", "20"], 20, "eval"),
    "pytorch_loop": (["--steps", "20"], 20, "test"),
    "accelerate_loop": (["--epochs", "1"], 16, None),
    "lightning_loop": (["--epochs", "1"], 16, "eval"),
    "jax_loop": (["--steps", "40"], 40, "eval"),
}


OF_ORACLES = {"lightning_loop": pytest.mark.oracle("lightning"), "jax_loop": pytest.mark.oracle("flax")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=OF_ORACLES.get(name, ())) for name in EXAMPLES])
def test_an_example_leaves_a_whole_log(name, root, warmed, log, tmp_path):
    pytest.importorskip("peft", reason="needs the hf extra: pip install -e '.[hf]'")
    given, rows, split = EXAMPLES[name]
    script = root / "examples" / "vnext" / f"{name}.py"
    done = warmed.run(script, "--out", tmp_path, *given, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    events = log(tmp_path)
    assert events.steps == list(range(1, rows + 1))
    assert all(row.loss > 0 and row.grad_norm > 0 and row.lr >= 0 for row in events.of("train_step"))
    assert [e.split for e in events.of("eval")][-1:] == ([split] if split else [])
    assert events[0].config.lora.r
    assert [e.status for e in events.of("run_end")] == ["ok"]
    losses = [row.loss for row in events.of("train_step")]
    assert sum(losses[-4:]) < sum(losses[:4])
