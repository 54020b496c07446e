from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus import INNOCENTS, PATHS, SECRETS, SHAPED
from hypothesis import given, strategies as st
from tables import every

from gradience.schema import SCHEMA_ID, ConfigSnapshot, OptimizerSnapshot, RunStart, TrainStep
from gradience.telemetry import TelemetryWriter
from gradience.telemetry.redact import Redaction, redact_document, redact_text
from gradience.telemetry.secrets import hide_secrets


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def test_the_corpora_are_large_enough_to_mean_something() -> None:
    assert len(SECRETS) >= 190
    assert len(INNOCENTS) >= 100


@pytest.mark.parametrize("rule", [Redaction(), Redaction(allow_text=True)], ids=["default", "text allowed"])
def test_every_secret_is_redacted_and_says_so(rule: Redaction) -> None:
    shown = [(value, core, redact_text(value, rule, key=key)) for key, value, core in SECRETS]
    assert [(value, got) for value, core, got in shown if core in got or "<redacted: " not in got] == []


def test_every_innocent_string_stays_as_it_is() -> None:
    changed = [(key, value, got) for key, value in INNOCENTS if (got := redact_text(value, key=key)) != value]
    assert changed == []


@every(("path", "kept"), PATHS)
def test_of_a_path_the_last_part_is_written(path: str, kept: str) -> None:
    assert redact_text(path) == kept


@given(st.sampled_from(SHAPED), st.text(max_size=20), st.text(max_size=20))
def test_a_secret_is_found_inside_any_text(secret: tuple[str, str], before: str, after: str) -> None:
    value, core = secret
    assert core not in hide_secrets(f"{before} {value} {after}")


@given(st.text(max_size=300), st.sampled_from([Redaction(), Redaction(allow_text=True)]))
def test_redacting_twice_changes_nothing_more(text: str, rule: Redaction) -> None:
    once = redact_text(text, rule)
    assert redact_text(once, rule) == once


def test_redaction_takes_time_in_proportion_to_the_text() -> None:
    for text in (
        "a" * 60_000,
        "token " * 10_000,
        "-----BEGIN PRIVATE KEY-----" * 2_000,
        "/x" * 30_000,
        "eyJ.a" * 12_000,
    ):
        hide_secrets(text)  # would not return in this lifetime if a pattern backtracked


def test_text_over_the_limit_is_redacted_unless_asked_for(log: Path) -> None:
    for n, options in enumerate(({}, {"allow_text": True}, {"max_str_len": 300})):
        with TelemetryWriter(log, **options) as writer:
            writer.train_step(n, note="x" * 257, short="y" * 256)
    notes = [json.loads(line).get("note") for line in log.read_bytes().splitlines()[::2]]
    assert notes == ["<redacted: text of 257 characters>", "x" * 257, "x" * 257]
    assert log.read_text().count("y" * 256) == 3


def test_no_secret_of_the_corpus_reaches_a_log_wherever_it_stands(log: Path) -> None:
    with TelemetryWriter(log, allow_text=True) as writer:
        for secret, _ in SHAPED:
            writer.run_start(
                ConfigSnapshot(notes=secret, optimizer=OptimizerSnapshot(extras={"deep": [{"x": secret}]}))
            )
            writer.train_step(1, note=secret, nested={"list": [secret]})
            writer.train_step(2, **{secret: 1})
            writer.eval(1, split=secret, metrics={"text": secret})
            writer.alert(severity="info", code=secret, message=f"failed: {secret}", context={secret: secret})
            writer.write(RunStart(schema=SCHEMA_ID, ts=None, run_id=secret, step=None, config=ConfigSnapshot()))
            writer.write(TrainStep(schema=SCHEMA_ID, ts=None, run_id="r", session=secret, step=1))
    with TelemetryWriter(log, SHAPED[0][0]) as writer:
        writer.run_start()
    written = log.read_text()
    assert [core for _, core in SHAPED if core in written or json.dumps(core)[1:-1] in written] == []
    assert written.count("<redacted") > 10 * len(SHAPED)


def test_the_text_of_an_exception_is_scanned_even_when_asked_for(log: Path) -> None:
    secret, _ = SHAPED[0]

    def crash() -> None:
        with TelemetryWriter(log, allow_text=True):
            raise ValueError(f"bad token {secret}")

    with pytest.raises(ValueError, match="bad token"):
        crash()
    assert secret not in log.read_text()
    assert "ValueError: bad token <redacted: hub token>" in log.read_text()


def test_innocent_strings_reach_the_log_as_they_are(log: Path) -> None:
    with TelemetryWriter(log) as writer:
        for n, (key, value) in enumerate(INNOCENTS):
            writer.metrics(n, kind="k", metrics={key: value})
    documents = [json.loads(line) for line in log.read_text().split("\n")[: len(INNOCENTS)]]
    assert [document["metrics"] for document in documents] == [{key: value} for key, value in INNOCENTS]


def test_numbers_under_a_secret_name_stay() -> None:
    assert redact_text("0", key="token") == "0"


@pytest.mark.parametrize("name", ["run_id", "session"])
def test_an_id_stays_whatever_it_looks_like_unless_it_holds_a_secret(name: str) -> None:
    head = {"schema": SCHEMA_ID, "ts": None, "run_id": "r", "step": 1, "event": "train_step"}
    for text, shown in (("/a/b", "/a/b"), ("x" * 300, "x" * 300), ("hf_" + "a" * 34, "<redacted: hub token>")):
        assert redact_document({**head, name: text}, Redaction())[name] == shown
