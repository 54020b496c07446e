"""Rows 2 and 3, secrets: none of the corpus is shown or stored, and what is none stays as it is."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import defaultdict

import pytest
from hostile import further
from hostile.inputs import CONFIG, SCHEMA, adapter, factors, log_line
from hostile.secrets import INNOCENTS, KINDS, KNOWN_BY_VALUE, SECRETS, SHAPES
from tables import few

from gradience import TelemetryWriter
from gradience.cli.main import main
from gradience.errors import GradienceError
from gradience.telemetry.redact import Redaction, hide_in, redact_document

OF_KIND = defaultdict(list)
for secret in SECRETS:
    OF_KIND[secret.kind].append(secret)


EVERY = 1 if os.environ.get("GRADIENCE_SLOW") else 8


def kinds(places, place):
    """Return (turn, secrets of a kind) that a place is tried with: an eighth of the kinds, all of them in three places.

    The writer meets every secret (`test_no_secret_reaches_a_log_through_the_writer`); GRADIENCE_SLOW=1 gives each place
    every kind.
    """
    every = list(enumerate(OF_KIND.values()))
    before = sum(map(len, PLACES[: PLACES.index(places)]))
    return every[(before + places.index(place)) % EVERY :: EVERY]


def holds(text, core):
    """Return whether a text shows a secret, as it is or as JSON or HTML writes it."""
    forms = {core, json.dumps(core)[1:-1], core.replace("&", "&amp;"), core.replace("/", "\\/")}
    return any(form in text for form in forms)


def shown(secrets, *texts):
    """Return the kinds and shapes of the secrets that the texts hold."""
    return [(s.kind, s.shape) for s in secrets if any(holds(text, s.core) for text in texts)]


def command(*argv):
    """Run a command in this process, and return what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main([str(word) for word in argv])
    return out.getvalue(), err.getvalue()


def test_the_corpus_is_as_large_as_is_claimed():
    assert len(KINDS) >= 60
    assert len(SHAPES) == 8
    assert len(SECRETS) >= 400
    assert len({s.core for s in SECRETS}) > 400
    assert len(INNOCENTS) >= 400
    assert all(s.core in json.dumps(s.value) for s in SECRETS)


@pytest.mark.skipif(EVERY < 3, reason="each place is tried with every kind")
def test_every_kind_is_tried_in_three_places():
    tried = [turn for places in PLACES for place in places for turn, _ in kinds(places, place)]
    assert min(tried.count(turn) for turn in range(len(OF_KIND))) >= 3


def test_no_secret_reaches_a_log_through_the_writer(tmp_path):
    log = tmp_path / "run.jsonl"
    with TelemetryWriter(log, allow_text=True) as writer:
        for s in SECRETS:
            writer.train_step(1, **{s.key: s.value})
            writer.metrics(1, kind="k", metrics={"config": {s.key: s.value}})
            text = s.value if isinstance(s.value, str) and s.key == "note" else None
            if text is not None:
                writer.alert(severity="info", code="c", message=text, context={"args": [text]})
                with contextlib.suppress(GradienceError):
                    writer.eval(1, split=text, metrics={"loss": 1.0})
    assert shown(SECRETS, log.read_text()) == []


def texts_of(secrets):
    """Return the secrets of a kind as texts: what a foreign program may have put anywhere.

    A password that nothing gives away but its name has its name in the text, too: `tiger42` alone may be a model.
    """
    return [s.value if _tells(s) else json.dumps({s.key: s.value}) for s in secrets]


def _tells(s):
    return isinstance(s.value, str) and (s.key == "note" or s.kind in KNOWN_BY_VALUE)


FIELDS = ("model_name", "dataset_name", "notes", "reason", "message", "code", "split", "kind")


def placed(secrets, turn):
    """Return the secrets' texts by the field they stand in: another one at every turn."""
    texts = texts_of(secrets)
    return {field: texts[(n + turn) % len(texts)] for n, field in enumerate(FIELDS)}


def foreign_log(path, secrets, turn):
    """Write a log that another program wrote, without redaction: secrets in whatever is displayed."""
    at = placed(secrets, turn)
    keyed = {f"{s.key}" if s.key != "note" else f"note{n}": s.value for n, s in enumerate(secrets)}
    config = {name: at[name] for name in FIELDS[:3]} | {"lora": {"r": 4, "alpha": 8.0, "extras": keyed}}
    lines = [
        log_line("run_start", config=config, meta=keyed),
        log_line("train_step", 1, loss=1.0, **keyed),
        log_line("eval", 1, split=at["split"], metrics={"loss": 1.0, **keyed}),
        log_line("alert", 1, severity="critical", code=at["code"], message=at["message"], context=keyed),
        log_line("metrics", 1, kind=at["kind"], metrics=keyed),
        log_line("run_end", status="error", reason=at["reason"]),
        json.dumps({"schema": SCHEMA, "ts": at["code"], "run_id": "r", "event": "train_step", "step": at["message"]}),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


VERBS = [
    "monitor",
    "validate",
    "diagnose",
    "report",
    "monitor --json",
    "validate --json",
    "diagnose --json",
    "monitor -v",
]


@pytest.mark.parametrize("verb", few(VERBS, each=2))
def test_no_secret_of_a_foreign_log_is_shown(tmp_path, verb):
    leaks = []
    name, *options = verb.split()
    for turn, secrets in kinds(VERBS, verb):
        log = foreign_log(tmp_path / "run.jsonl", secrets, turn)
        leaks += shown(secrets, *command(name, log, *options))
    assert sorted(set(leaks)) == []


def test_no_secret_of_a_foreign_log_is_in_its_page(tmp_path):
    leaks = []
    page = tmp_path / "page.html"
    for turn, secrets in enumerate(list(OF_KIND.values())[:: 2 * EVERY]):
        log = foreign_log(tmp_path / "run.jsonl", secrets, turn)
        said = command("report", log, "--out", page, "--force")
        leaks += shown(secrets, *said, page.read_text())
    assert sorted(set(leaks)) == []


OPTIONS = [[], ["--json"], ["--format", "sarif"], ["--format", "github"], ["-v"]]


@pytest.mark.parametrize("options", OPTIONS)
def test_no_secret_of_a_config_is_shown_by_check(tmp_path, options):
    leaks = []
    path = tmp_path / "c.json"
    for turn, secrets in kinds(OPTIONS, options):
        at = placed(secrets, turn)
        keyed = {s.key if s.key != "note" else f"note{n}": s.value for n, s in enumerate(secrets)}
        names = {name: at[name] for name in FIELDS[:3]} | {"optimizer": at["reason"][:250], at["code"]: 1}
        path.write_text(json.dumps({"lr": 1.0, "r": 4, **names, **keyed}))
        leaks += shown(secrets, *command("check", path, *options))
    assert sorted(set(leaks)) == []


KEYS = ["r", "lr", "bf16", "target_modules", "task_profile"]


@pytest.mark.parametrize("key", KEYS)
def test_no_secret_is_quoted_by_an_error(tmp_path, key):
    leaks = []
    path = tmp_path / "c.json"
    for turn, secrets in kinds(KEYS, key):
        text = texts_of(secrets)[turn % 2 * 5]
        path.write_text(json.dumps({"lr": 1e-4, key: text if key != "target_modules" else {"a": text}}))
        leaks += shown(secrets, *command("check", path))
    assert sorted(set(leaks)) == []


GIVEN = ["--set=targets=", "--task=", "--set=r="]


@pytest.mark.parametrize("option", GIVEN)
def test_no_secret_of_the_command_line_is_repeated(option):
    leaks = []
    for turn, secrets in kinds(GIVEN, option):
        text = texts_of(secrets)[4 + turn % 4]
        leaks += shown(secrets, *command("check", "--set", "lr=1", option + text, "--settings", "none"))
    assert sorted(set(leaks)) == []


RUNS = ["trainer_state.json", "t.jsonl", "t.csv", "args.json"]
PLACES = [VERBS, OPTIONS, KEYS, GIVEN, RUNS]


@pytest.mark.parametrize("source", RUNS)
def test_no_secret_of_a_foreign_run_reaches_the_log_made_of_it(tmp_path, source):
    leaks = []
    for _, secrets in kinds(RUNS, source):
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        out = tmp_path / "r.jsonl"
        rows = [{"step": n, "loss": 1.0, s.key: s.value} for n, s in enumerate(secrets, 1)]
        texts = texts_of(secrets)
        state = {"global_step": 9, "max_steps": 9, "best_model_checkpoint": texts[4]}
        if source in {"trainer_state.json", "args.json"}:
            history = rows + [{"step": 9, f"eval_{text}_loss": 1.0} for text in texts]
            (folder / "trainer_state.json").write_text(json.dumps(state | {"log_history": history}))
        if source == "args.json":
            settings = {"learning_rate": 1e-4, "model": texts[0]} | {s.key: s.value for s in secrets}
            for name in ("args.json", "training_args.json"):
                (folder / name).write_text(json.dumps(settings | {"run_name": texts[4], "output_dir": texts[5]}))
            config = CONFIG | {"base_model_name_or_path": texts[5], "revision": texts[4]}
            (folder / "adapter_config.json").write_text(json.dumps(config))
        path = folder
        if source == "t.jsonl":
            path = folder / source
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if source == "t.csv":
            path = folder / source
            cells = [text.replace('"', "'") for text in texts]
            lines = [f'{n},1.0,"{cell}"' for n, cell in enumerate(cells, 1)]
            path.write_text("\n".join([f"step,loss,{secrets[0].key}", *lines]) + "\n")
        said = command("import", path, "--out", out, "--force", "--json")
        leaks += shown(secrets, *said, out.read_text() if out.exists() else "")
    assert sorted(set(leaks)) == []


@pytest.mark.parametrize("place", ["as a value", "inside text", "in a list", "as a column"])
def test_at_most_one_in_a_hundred_innocents_is_redacted(tmp_path, place):
    log = tmp_path / "run.jsonl"
    with TelemetryWriter(log, allow_text=True) as writer:
        for n, innocent in enumerate(INNOCENTS):
            held = {
                "as a value": {innocent.key: innocent.value},
                "inside text": {"note": f"using {innocent.value} for {innocent.key}"},
                "in a list": {"seen": [innocent.value, "x"]},
                "as a column": {f"{innocent.value[:60]}": 1.0},
            }
            writer.metrics(n, kind="k", metrics=held[place])
    lines = log.read_text().split("\n")[: len(INNOCENTS)]
    hit = [i for i, line in zip(INNOCENTS, lines, strict=True) if "redacted" in line]
    assert len(hit) <= len(INNOCENTS) // 100, hit


def test_no_secret_of_the_further_kinds_is_logged_or_shown():
    assert len(further.SECRETS) >= 300
    rule = Redaction(allow_text=True, max_str_len=10**6)
    held = [({s.key: s.value}, s) for s in further.SECRETS]
    assert all(s.core in json.dumps(document) for document, s in held)
    assert [s.kind for document, s in held if s.core in json.dumps(redact_document(document, rule))] == []
    assert [s.kind for document, s in held if s.core in json.dumps(hide_in(document))] == []


@pytest.mark.parametrize("place", ["{1}", "using {1} for {0}", "train.py --{0} {1} --lr 1e-4", "a: 1\n{0}: {1}\nb: 2"])
def test_of_the_further_innocents_at_most_one_in_a_hundred_is_redacted(place):
    assert len(further.INNOCENTS) >= 150
    rule = Redaction(allow_text=True, max_str_len=10**6)
    held = [{key if place == "{1}" else "note": place.format(key, value)} for key, value in further.INNOCENTS]
    hit = [document for document in held if "redacted" in json.dumps(redact_document(document, rule))]
    assert len(hit) <= len(held) // 100, hit


@pytest.mark.parametrize("value", ["k91mM34VA7KPtAvHNjEv", {"value": "k91mM34VA7KPtAvHNjEv"}])
def test_a_setting_in_which_adapters_differ_is_hidden_if_its_name_is_a_secrets(tmp_path, value):
    for seed, name in enumerate("ab"):
        adapter(tmp_path / name, factors(seed=seed), {"account_key": value} if name == "a" else {})
    said = command("merge-check", tmp_path / "a", tmp_path / "b", "--json")
    assert "account_key" in said[0]
    assert "k91mM34VA7KPtAvHNjEv" not in "".join(said)


def test_a_secret_in_a_text_that_an_error_quotes_is_hidden(tmp_path):
    for text in ("login:\n password: k91mM34VA7KP\n lr: 1", "passwords:\n - a\n - k91mM34VA7KP\nlr: 1"):
        (tmp_path / "c.json").write_text(json.dumps({"lr": text}))
        assert "k91mM34VA7KP" not in "".join(command("check", tmp_path / "c.json"))
