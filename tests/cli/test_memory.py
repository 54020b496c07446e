"""Freed memory: kept where the C library can be told to, and no matter where not."""

from __future__ import annotations

import ctypes

from tables import every

from gradience.cli.output import keep_freed


def test_glibc_is_told_how_much_to_keep(monkeypatch):
    told = []
    library = type("Library", (), {"mallopt": staticmethod(lambda what, value: told.append((what, value)))})
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    keep_freed()
    assert told == [(-3, 16 << 20), (-1, 16 << 20)]


@every("error", [AttributeError, OSError, TypeError])
def test_another_library_does_as_it_does(monkeypatch, error):
    def refuse(_name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed()
