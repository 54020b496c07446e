"""Which rules speak while training runs: their finding is taken back by no later row, and worth stopping for."""

from __future__ import annotations

from gradience.rules.log import DETECTORS

LIVE = {
    *("NUM101", "NUM102"),  # numbers that are not finite
    *("DIV104", "GRD108"),  # diverged, or nothing left to learn by
    *("OVF110", "HLD146", "GAP111"),  # of held-out values that have risen for long, or do not follow the training
    *("DAT301", "DAT305", "DAT307", "DAT309", "DAT316", "DAT329", "DAT333"),
    *("DAT347", "DAT349", "DAT355"),  # what the first batches hold
    *("DAT358", "DAT361", "DAT366", "FED226", "FED227", "FED228"),  # and whether they are others at each step
    *("LED405", "LED412"),  # a head that is trained apart, and what no save holds
}


def test_while_training_runs_only_these_and_faults_of_wiring_speak() -> None:
    live = {rule.id for rule in DETECTORS if rule.live}
    wired = {rule.id for rule in DETECTORS if rule.id.startswith("WIR")}
    assert live == LIVE | wired
    assert len(wired) == 21
