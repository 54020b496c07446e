"""The third, fourth and fifth corpus: how many secrets are hidden, and how few innocent strings."""

from __future__ import annotations

import contextlib
import json

import pytest
from hostile import fresh, later
from hostile.field import INNOCENTS, SECRETS, unseen

from gradience.telemetry.redact import hide_in
from gradience.telemetry.secrets import hide_secrets


def test_the_corpus_is_as_large_as_is_claimed():
    assert len(SECRETS) >= 150
    assert len(INNOCENTS) >= 250
    assert all(secret in text for _, text, secret in SECRETS)


def is_hidden(line):
    """Whether any of an innocent line is hidden, as a text or as a mapping."""
    key, _, value = line.partition(": ")
    with contextlib.suppress(ValueError):
        value = json.loads(value)
    return hide_secrets(line) != line or (bool(value) and hide_in({key: value}) != {key: value})


@pytest.mark.parametrize("half", [False, True], ids=["tuned on", "not looked at"])
def test_97_in_100_secrets_are_hidden_and_at_most_2_in_100_innocents(half):
    secrets = [(text, secret) for shape, text, secret in SECRETS if unseen(shape) is half]
    innocents = [line for line in INNOCENTS if unseen(line) is half]
    shown = [text for text, secret in secrets if secret in hide_secrets(text)]
    hidden = [line for line in innocents if is_hidden(line)]
    assert len(shown) <= 0.03 * len(secrets)
    assert len(hidden) <= 0.02 * len(innocents)


@pytest.mark.parametrize("corpus", [fresh, later], ids=["fresh", "later"])
def test_of_a_corpus_written_at_once_97_in_100_are_hidden_and_2_in_100_innocents(corpus):
    assert len(corpus.SECRETS) >= 100
    assert len(corpus.INNOCENTS) >= 200
    shown = [text for text, secret in corpus.SECRETS if secret in hide_secrets(text)]
    hidden = [line for line in corpus.INNOCENTS if is_hidden(line)]
    assert len(shown) <= 0.03 * len(corpus.SECRETS), shown
    assert len(hidden) <= 0.02 * len(corpus.INNOCENTS), hidden
