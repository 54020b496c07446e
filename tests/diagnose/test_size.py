"""An update as large as the weights is an error of its own only while no held-out loss fell."""

from __future__ import annotations

import numpy as np
from audited import save_adapter
from safetensors.numpy import save_file
from tables import every

from gradience import diagnose
from gradience.telemetry.writer import TelemetryWriter

LAYERS, WIDTH, R = 4, 32, 4


def write_run(folder, evals, *, weight=0.02, split="eval"):
    """A run's folder with its base: a log of a falling loss with these evaluations, and an update of twice the base."""
    rng = np.random.default_rng(0)
    (folder / "base").mkdir(parents=True)
    stems = [f"model.layers.{i}.self_attn.q_proj" for i in range(LAYERS)]
    save_file(
        {f"{stem}.weight": (weight * rng.standard_normal((WIDTH, WIDTH))).astype("f4") for stem in stems},
        folder / "base" / "model.safetensors",
    )
    led = [weight * rng.standard_normal((WIDTH, 1)) * 0.5 ** np.arange(R) for _ in stems]
    save_adapter(folder / "peft", [(b, rng.standard_normal((R, WIDTH))) for b in led], task_type="CAUSAL_LM")
    log = TelemetryWriter(folder / "run.jsonl", fsync="never")
    log.run_start()
    for step in range(1, 41):
        log.train_step(step, loss=2.0 - 0.02 * step, lr=1e-3, grad_norm=1.0)
        if step % 10 == 0 and evals:
            log.eval(step, split=split, metrics={"loss": evals[step // 10 - 1]})
    log.run_end(status="ok")
    log.close()
    return folder


def of_size(report):
    """The cause that SIZ215 is a part of."""
    return next(cause for cause in report.findings if "SIZ215" in {piece.id for piece in cause.pieces})


@every(
    ("evals", "split", "severity"),
    [
        ((2.0, 1.8, 1.7, 1.6), "eval", "warning"),
        ((2.0, 1.8, 1.9, 2.0), "eval", "error"),
        ((2.0, 1.8, 1.7, 1.6), "train", "error"),  # not held out
        ((), "eval", "error"),
    ],
)
def test_a_falling_held_out_loss_bars_broken(evals, split, severity, tmp_path):
    folder = write_run(tmp_path / f"{split}{len(evals)}{evals[-1:]}", evals, split=split)
    report = diagnose(folder, base=folder / "base")
    size = of_size(report)
    assert size.severity == severity
    assert (report.verdict == "broken") is (severity == "error")
    assert "times the norm of the weights of these modules" in size.message


def test_a_huge_update_that_only_weights_tell_is_no_ruin_either_where_the_held_out_loss_fell(tmp_path):
    folder = write_run(tmp_path / "huge", (2.0, 1.8, 1.7, 1.6), weight=1.0)
    report = diagnose(folder, base=folder / "base")
    assert (of_size(report).id, of_size(report).severity) == ("UPD316", "warning")
    assert report.verdict == "needs_attention"
