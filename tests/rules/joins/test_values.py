"""Of values of one name the first that is known is a message's."""

from __future__ import annotations

from gradience.rules import Observation
from gradience.rules.joins import Symptom, _values


def test_the_first_known_value_of_a_name_counts():
    some = [{"step": None, "loss": 1.0}, {"step": 3, "loss": 2.0}, {"step": 4, "rate": 0.0}]
    symptoms = [Symptom("log", "X", Observation("m", values)) for values in some]
    assert _values(symptoms) == {"loss": 1.0, "step": 3, "rate": 0.0}
    assert _values([]) == {}
