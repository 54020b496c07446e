"""What a report or an event says of itself beside its fields."""

from __future__ import annotations

from typing import Any

from audited import report
from tables import every

from gradience.schema.events import TrainingSnapshot, UnknownEvent
from gradience.schema.merge import MergedModule

MERGED = MergedModule(name="q", kind="linear", ranks=[3, 4], rank=5, relative_error=None)


@every(
    ("value", "derived"),
    [
        (MERGED, {"rank_before": 7, "rank_after": 5}),
        *(
            (report(config_path=path, weights_path=weights, format=form), {"is_scaled": scaled})
            for path, weights, form, scaled in (
                ("c", "w", "peft", True),
                (None, "w", "peft", False),
                (None, "w", "mlx-lm", True),
                (None, "", "peft", True),
            )
        ),
        *(
            (TrainingSnapshot(max_steps=steps), {"planned_steps": planned})
            for steps, planned in ((None, None), (-1, None), (0, None), (1, 1), (2**53 - 1, 2**53 - 1), (2**53, None))
        ),
        *(
            (
                UnknownEvent(event="x", ts=1, run_id="r", step=2, payload={"seq": seq, "session": session}),
                {"seq": number, "session": text},
            )
            for seq, session, number, text in ((3, "s", 3, "s"), (True, 3, None, None), (-1, None, None, None))
        ),
    ],
)
def test_what_follows_from_the_fields(value: Any, derived: dict[str, Any]) -> None:
    assert {name: getattr(value, name) for name in derived} == derived
