"""Parts of the tables of settings."""

from __future__ import annotations

from gradience.configs.settings import OPTIMIZER, TRAINING, some_of


def test_some_settings_are_those_of_the_fields_named():
    assert {setting.field for setting in some_of(OPTIMIZER, "lr", "eps")} == {"lr", "eps"}
    assert {setting.field for setting in some_of(TRAINING, "seed")} == {"seed"}
    assert some_of(TRAINING) == ()
