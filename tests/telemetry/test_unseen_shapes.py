"""Secrets and innocent texts written before the patterns were read: how many are hidden, and how many stay."""

from __future__ import annotations

from pathlib import Path

from gradience.telemetry.secrets import hide_secrets

HIDDEN_AT_LEAST = 0.97
REDACTED_AT_MOST = 0.02


def lines(name: str) -> list[str]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8").replace("\N{BROKEN BAR}", "")
    return [line for line in text.splitlines() if line and not line.startswith("# ")]


def test_of_a_hundred_shapes_of_secrets_nearly_all_are_hidden() -> None:
    shapes = [(line.partition("\u00ab")[2].partition("\u00bb")[0], line) for line in lines("secret_shapes.txt")]
    texts = [(core, line.replace("\u00ab", "").replace("\u00bb", "")) for core, line in shapes]
    shown = [text for core, text in texts if core in hide_secrets(text)]
    assert len(shapes) > 100
    assert len(shown) <= (1 - HIDDEN_AT_LEAST) * len(shapes), shown


def test_of_two_hundred_innocent_texts_nearly_all_stay() -> None:
    texts = lines("innocent_texts.txt")
    changed = [(text, hide_secrets(text)) for text in texts if hide_secrets(text) != text]
    assert len(texts) > 200
    assert len(changed) <= REDACTED_AT_MOST * len(texts), changed


def test_a_way_of_asking_is_no_token_and_a_call_is_hidden_with_what_it_is_given() -> None:
    ways = "prompt_logprobs: /v1/completions: none; logprobs token by token: /v1/completions: no token ids"
    assert hide_secrets(ways) == ways
    assert hide_secrets("api_key=SecretStr('hunter2xyz'), r=8") == "api_key=SecretStr<redacted: secret key>, r=8"
