"""The head of a line, a training row, the note of a secret, and the text of a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from gradience.errors import RecorderError

HIDDEN = "<redacted: secret key>"
SCHEMA = "gradience.vnext.telemetry/v1"
HEAD: dict[str, Any] = {"schema": SCHEMA, "ts": 1.0, "run_id": "r"}
ROW: dict[str, Any] = {**HEAD, "event": "train_step", "step": 1, "loss": 0.5}
ADVICE = "record numbers, strings, booleans, and lists or mappings of them"


def refusal(make: Any) -> str:
    """Return why a value is refused."""
    with pytest.raises(RecorderError) as error:
        make()
    assert error.value.advice == ADVICE
    return error.value.message
