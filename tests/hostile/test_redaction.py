"""Rows 2 and 3, secrets: none is shown or stored wherever it stands, and what is none stays as it is."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import corpus
import pytest
from hostile.inputs import CONFIG, SCHEMA, adapter, factors, log_line
from hostile.secrets import INNOCENTS, SECRETS
from tables import SLOW, every

from gradience.cli.main import main
from gradience.telemetry.redact import Redaction, hide_in, redact_document
from gradience.telemetry.secrets import hide_secrets

RULE = Redaction(allow_text=True, max_str_len=10**6)


def as_document(text: str) -> dict[str, object]:
    """A line as what a log would hold: a JSON object, a setting, or else a note."""
    key, colon, value = text.partition(": ")
    if text.startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    if not colon or not key.isidentifier():
        return {"note": text}
    with contextlib.suppress(ValueError):
        value = json.loads(value)
    return {key: value}


@every(("text", "secret"), SECRETS)
def test_a_secret_is_hidden_in_a_text_and_in_a_log(text, secret):
    assert secret in text
    assert secret not in hide_secrets(text)
    assert secret not in json.dumps(redact_document({"note": text}, RULE))
    assert secret not in json.dumps(hide_in(as_document(text)))


@every("text", INNOCENTS)
def test_what_is_no_secret_stays(text):
    assert hide_secrets(text) == text
    assert hide_in(as_document(text)) == as_document(text)


# Places: what other programs, and people, may have put anywhere ------------------------------------------------------

Secrets = list[tuple[str, str, str]]  # key, value, and the part of it that is the secret
FIELDS = ("model_name", "dataset_name", "notes", "reason", "message", "code", "split", "kind")


def command(*argv: object) -> str:
    """Run a command in this process, and return what it wrote to stdout and stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        main([str(word) for word in argv])
    return said.getvalue()


def texts_of(secrets: Secrets) -> list[str]:
    """Texts that give the secrets away: one that nothing gives away but its name has its name beside it."""
    return [value if key == "note" else json.dumps({key: value}) for key, value, _ in secrets]


def of_a_log(line: str, tmp_path: Path, secrets: Secrets) -> str:
    """A log that another program wrote, without redaction: secrets in whatever is displayed."""
    texts = texts_of(secrets)
    at = {field: texts[n % len(texts)] for n, field in enumerate(FIELDS)}
    keyed = {f"{key}{n}" if key == "note" else key: value for n, (key, value, _) in enumerate(secrets)}
    config = {name: at[name] for name in FIELDS[:3]} | {"lora": {"r": 4, "alpha": 8.0, "extras": keyed}}
    rows = [
        log_line("run_start", config=config, meta=keyed),
        log_line("train_step", 1, loss=1.0, **keyed),
        log_line("eval", 1, split=at["split"], metrics={"loss": 1.0, **keyed}),
        log_line("alert", 1, severity="critical", code=at["code"], message=at["message"], context=keyed),
        log_line("metrics", 1, kind=at["kind"], metrics=keyed),
        log_line("run_end", status="error", reason=at["reason"]),
        json.dumps({"schema": SCHEMA, "ts": at["code"], "run_id": "r", "event": "train_step", "step": at["message"]}),
    ]
    (tmp_path / "run.jsonl").write_text("\n".join(rows) + "\n")
    said = command(*line.format(log=tmp_path / "run.jsonl", page=tmp_path / "page.html").split(" "))
    page = tmp_path / "page.html"
    return said + (page.read_text() if page.exists() else "")


def of_a_config(options: str, tmp_path: Path, secrets: Secrets) -> str:
    texts = texts_of(secrets)
    keyed = {f"{key}{n}" if key == "note" else key: value for n, (key, value, _) in enumerate(secrets)}
    names = {name: texts[n % len(texts)] for n, name in enumerate(FIELDS[:3])}
    document = {"lr": 1.0, "r": 4, **names, "optimizer": texts[-1][:250], texts[0]: 1, **keyed}
    (tmp_path / "c.json").write_text(json.dumps(document))
    return command("check", tmp_path / "c.json", *options.split())


def of_an_error(key: str, tmp_path: Path, secrets: Secrets) -> str:
    said = ""
    for text in texts_of(secrets):
        (tmp_path / "c.json").write_text(json.dumps({"lr": 1e-4, key: text}))
        said += command("check", tmp_path / "c.json")
    return said


def of_the_command_line(option: str, _: Path, secrets: Secrets) -> str:
    given = option.endswith("=")  # a single setting
    said = ""
    for text in texts_of(secrets):
        words = ["--set", f"{option}{text}"] if given else [option, text]
        said += command("check", "--set", "lr=1", *words, "--settings", "none")
    return said


def of_a_run(source: str, tmp_path: Path, secrets: Secrets) -> str:
    texts, folder, out = texts_of(secrets), tmp_path / "out", tmp_path / "r.jsonl"
    folder.mkdir(exist_ok=True)
    rows = [{"step": n, "loss": 1.0, key: value} for n, (key, value, _) in enumerate(secrets, 1)]
    path = folder / source
    if source == "trainer_state.json":
        history = rows + [{"step": 9, f"eval_{text}_loss": 1.0} for text in texts]
        path.write_text(json.dumps({"global_step": 9, "best_model_checkpoint": texts[0], "log_history": history}))
        settings = {"learning_rate": 1e-4, "model": texts[0], "output_dir": texts[-1]}
        settings |= {key: value for key, value, _ in secrets}
        (folder / "training_args.json").write_text(json.dumps(settings))
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": texts[-1]}))
    elif source == "t.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [f'{n},1.0,"{text.replace(chr(34), chr(39))}"' for n, text in enumerate(texts, 1)]
        path.write_text("\n".join([f"step,loss,{secrets[0][0]}", *cells]) + "\n")
    said = command("import", path, "--out", out, "--force", "--json")
    return said + (out.read_text() if out.exists() else "")


LOGS = ("monitor {log} -v", "validate {log} --json", "diagnose {log}", "report {log}", "monitor {log} --json")
PLACES: list[Callable[[Path, Secrets], str]] = [
    *(partial(of_a_log, line) for line in (*LOGS, "report {log} --out {page} --force")),
    *(partial(of_a_config, line) for line in ("", "--json", "--format sarif", "--format github", "-v")),
    *(partial(of_an_error, key) for key in ("r", "lr", "bf16", "task_profile")),
    *(partial(of_the_command_line, option) for option in ("targets=", "--task", "r=")),
    *(partial(of_a_run, source) for source in ("trainer_state.json", "t.jsonl", "t.csv")),
]


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_no_secret_is_shown_or_stored_wherever_it_was_put(tmp_path, place):
    """Each place meets some of the kinds, and each kind some places; all meet all with GRADIENCE_SLOW=1."""
    tried = [held for held in corpus.SECRETS if held[0].lower() != "wandb"]  # that is known by its key alone
    tried = tried[0 if SLOW else place % 7 :: 1 if SLOW else 7]
    leaks = []
    for secrets in (tried[n : n + 8] for n in range(0, len(tried), 8)):
        shown = PLACES[place](tmp_path, secrets)
        for _, _, core in secrets:
            forms = {core, json.dumps(core)[1:-1], core.replace("&", "&amp;"), core.replace("/", "\\/")}
            leaks += [core for form in forms if form in shown]
    assert leaks == []


@pytest.mark.parametrize("value", ["k91mM34VA7KPtAvHNjEv", {"value": "k91mM34VA7KPtAvHNjEv"}])
def test_a_setting_in_which_adapters_differ_is_hidden_if_its_name_is_a_secrets(tmp_path, value):
    for seed, name in enumerate("ab"):
        adapter(tmp_path / name, factors(seed=seed), {"account_key": value} if name == "a" else {})
    said = command("merge", tmp_path / "a", tmp_path / "b", "--check", "--json")
    assert "account_key" in said
    assert "k91mM34VA7KPtAvHNjEv" not in said


def test_a_secret_in_a_text_that_an_error_quotes_is_hidden(tmp_path):
    for text in ("login:\n password: k91mM34VA7KP\n lr: 1", "passwords:\n - a\n - k91mM34VA7KP\nlr: 1"):
        (tmp_path / "c.json").write_text(json.dumps({"lr": text}))
        assert "k91mM34VA7KP" not in command("check", tmp_path / "c.json")
