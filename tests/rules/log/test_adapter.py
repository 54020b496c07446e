"""What the monitor says of the audit that a log holds."""

from __future__ import annotations

from log_runs import facts_of, logged_rows
from tables import every

from gradience.rules.log import detect


def judged(payload):
    return detect(facts_of(logged_rows([], [], []), audit=payload, status="ok"))


@every(
    ("payload", "message"),
    [
        ({"utilization_mean": 0.25}, None),
        ({"utilization_mean": 0.249}, "Utilization 24.9%, under 25%: likely over-provisioned."),
        (
            {"utilization_mean": 0.142, "suggested_r_global_median": 2, "suggested_r_global_90": 3},
            (
                "Utilization 14.2%, under 25%: likely over-provisioned. Compress to r=2 (most modules) or r=3 (the "
                "tail) after training, do not train with it; verify with eval."
            ),
        ),
        ({"utilization_mean": 0.142, "verdict": "random_like"}, None),
    ],
)
def test_low_utilization_is_read_with_the_ranks_to_compress_to(payload, message):
    found = [(f.severity, f.message) for f in judged({"n_layers": 2, **payload}).told if f.id == "UTL204"]
    assert found == ([("info", message)] if message else [])
