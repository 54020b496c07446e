"""What is told where a team looks: each place by its real package, offline, or by a real server on the loopback."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest

from gradience.announce import WEBHOOK, Announcement, Announcer, checked, of_finding, of_report
from gradience.errors import GradienceError
from gradience.schema.document import Finding

SECRET = "hf_" + "abcdefghijklmnopqrstuvwxyz" + "123456"
STEP = Announcement("gradience: NUM101 at step 3", "Not finite & <b>", "error", ("NUM101",), 3)
WHOLE = Announcement("gradience: run", f"the story\nNUM101 of {SECRET}", "error", ("NUM101", "LR001"))
HIDDEN = "the story\nNUM101 of <redacted: hub token>"


class Server(ThreadingHTTPServer):
    """Keeps what is posted to it; answers with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.posted: list[dict[str, str]] = []
        self.asked, self.status = 0, 200
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        if self.server.status == 200:
            self.server.posted.append(json.loads(body))
        self.send_response(self.server.status)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{one.server_port}/services/secret")
        yield one
        one.shutdown()


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No place is named by the environment of whoever runs the tests, and what a package writes lies in tmp_path."""
    for name in ("WANDB_RUN_ID", "MLFLOW_RUN_ID", "TRACKIO_PROJECT", "TRACKIO_RUN", WEBHOOK, "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    written = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    written |= {"MLFLOW_TRACKING_URI": f"file:{tmp_path / 'mlruns'}", "MLFLOW_ALLOW_FILE_STORE": "true"}
    for name, value in written.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


SEVERITIES = ("info", "warning", "error", "critical")
GRADED = [STEP._replace(title=f"gradience: {severity}", severity=severity, step=4) for severity in SEVERITIES]


def tell(place: str, folder: Path, *before: Announcement) -> None:
    announcer = Announcer([place], folder)  # type: ignore[list-item]
    for told in (*before, STEP, WHOLE):
        announcer.tell(told)


def test_a_webhook_gets_messages_of_slacks_format(server, tmp_path):
    tell("webhook", tmp_path)
    assert server.posted == [
        {"text": "*gradience: NUM101 at step 3*\n```Not finite &amp; &lt;b&gt;```"},
        {"text": "*gradience: run*\n```the story\nNUM101 of &lt;redacted: hub token&gt;```"},
    ]


@pytest.mark.parametrize(("status", "named"), [(500, "HTTP 500"), (302, "HTTP 302")])
def test_a_place_that_fails_is_named_once_without_its_address_and_left_alone(status, named, server, records, tmp_path):
    """A redirect is a failure: no other address is asked."""
    server.status = status
    tell("webhook", tmp_path)
    assert server.asked == 1
    assert [r.getMessage() for r in records] == [
        f"gradience: could not announce to webhook, which is left alone: {named}"
    ]


def test_githubs_summary_gets_the_whole_and_cannot_be_left(monkeypatch, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    tell("github", tmp_path)
    Announcer(["github"], tmp_path).tell(WHOLE._replace(title="a `b`", text="```\n# out\n```"))
    assert summary.read_text() == (
        f"before\n### gradience: run\n\n```text\n{HIDDEN}\n```\n\n### a b\n\n````text\n```\n# out\n```\n````\n\n"
    )


@pytest.mark.oracle("tensorboard")
def test_tensorboard_shows_the_texts_at_their_steps(tmp_path):
    pytest.importorskip("torch")
    loader = import_module("tensorboard.backend.event_processing.event_accumulator")
    tell("tensorboard", tmp_path)
    shown = loader.EventAccumulator(str(tmp_path / "gradience")).Reload()
    texts = {}
    for tag in ("gradience/NUM101/text_summary", "gradience/text_summary"):
        (event,) = shown.Tensors(tag)
        texts[tag] = (event.step, event.tensor_proto.string_val[0].decode())
    assert texts["gradience/NUM101/text_summary"][0] == 3
    assert HIDDEN in texts["gradience/text_summary"][1]


@pytest.mark.oracle("mlflow")
def test_mlflow_gets_tags_and_the_text(monkeypatch, tmp_path):
    mlflow = import_module("mlflow")
    run = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    tell("mlflow", tmp_path)
    tags = {k: v for k, v in mlflow.get_run(run).data.tags.items() if k.startswith("gradience")}
    assert tags == {
        "gradience.NUM101": "step 3: Not finite & <b>",
        "gradience.findings": "NUM101 LR001",
        "gradience.summary": HIDDEN,
    }
    assert mlflow.artifacts.load_text(f"runs:/{run}/gradience.txt") == HIDDEN


@pytest.mark.oracle("trackio")
def test_trackio_gets_alerts_of_the_run_that_is_open_and_when_it_has_ended(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = import_module("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    trackio.init(project="p", name="r", auto_log_cpu=False)
    trackio.log({"loss": 1.0})
    announcer = Announcer(["trackio"], tmp_path)
    trackio.finish()
    capsys.readouterr()
    for each in (*GRADED, STEP, WHOLE):
        announcer.tell(each)
    (run,) = trackio.Api().runs("p")
    told = {(alert["title"], alert["text"], alert["level"]) for alert in run.alerts()}
    graded = {"info": "info", "warning": "warn", "error": "error", "critical": "error"}
    assert told == {
        *((f"gradience: {severity}", STEP.text, level) for severity, level in graded.items()),
        (STEP.title, STEP.text, "error"),
        (WHOLE.title, HIDDEN, "error"),
    }
    assert capsys.readouterr().out == ""


@pytest.mark.oracle("wandb")
def test_wandb_gets_alerts_a_summary_and_tags_of_the_run_that_is_open(monkeypatch, tmp_path):
    wandb = import_module("wandb")
    said, run = [], wandb.init(id="abc")
    alert = run.alert
    monkeypatch.setattr(run, "alert", lambda **what: (said.append(what), alert(**what)))
    tell("wandb", tmp_path, *GRADED)
    graded = [("warning", "WARN"), ("error", "ERROR"), ("critical", "ERROR")]  # what is only info alerts nobody
    assert said == [
        *({"title": f"gradience: {severity}", "text": STEP.text, "level": level} for severity, level in graded),
        {"title": STEP.title, "text": STEP.text, "level": "ERROR"},
        {"title": WHOLE.title, "text": HIDDEN, "level": "ERROR"},
    ]
    assert (dict(run.summary)["gradience"], run.tags) == (HIDDEN, ("NUM101", "LR001"))
    run.finish()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*-abc/run-abc.wandb")
    assert SECRET.encode() not in kept.read_bytes()


@pytest.mark.parametrize("place", ["webhook", "github"])
def test_a_place_that_the_environment_does_not_name_is_refused_before_the_work(place):
    with pytest.raises(GradienceError, match=rf"announcing to {place} needs [A-Z_]+ in the environment"):
        checked([place])


def test_an_unknown_place_a_missing_package_and_a_strange_address_are_refused(monkeypatch):
    with pytest.raises(GradienceError, match="cannot announce to 'pager'"):
        checked(["pager"])  # type: ignore[list-item]
    monkeypatch.setattr("gradience.announce.find_spec", lambda _name: None)
    with pytest.raises(GradienceError, match="announcing to wandb needs its package"):
        checked(["wandb"])
    monkeypatch.setenv(WEBHOOK, "file:///etc/passwd")
    with pytest.raises(GradienceError, match="is no address of http") as error:
        checked(["webhook"])
    assert "passwd" not in str(error.value)


def test_what_is_told_of_findings():
    one = Finding(id="LR001", severity="warning", message="low", action="raise it")
    two = Finding(id="NUM101", severity="error", message="nan")
    assert of_finding(one, 7) == Announcement("gradience: LR001 at step 7", "low -> raise it", "warning", ("LR001",), 7)
    assert of_report("t", "x", [one, two, one]) == Announcement("t", "x", "error", ("NUM101", "LR001"))
    assert of_report("t", "x", []) == Announcement("t", "x", "info")


@pytest.mark.oracle("mlflow")
def test_a_trainer_tells_each_place_and_a_broken_one_ends_nothing(
    training, callback, server, records, monkeypatch, tmp_path
):
    mlflow = import_module("mlflow")
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary / "in a file that is none"))
    summary.write_text("")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "e")
    poison = training.At(3, lambda model: next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan))
    recorder = callback(announce=("webhook", "mlflow", "github"))
    given = {"learning_rate": 2e-4, "logging_nan_inf_filter": False, "report_to": "mlflow"}
    made = training.trainer(tmp_path / "a run", poison, recorder, **given)
    made.train()
    titles = [posted["text"].splitlines()[0] for posted in server.posted]
    assert titles[-1] == "*gradience: a run*"
    assert "*gradience: NUM101 at step 4*" in titles
    run = mlflow.search_runs(experiment_names=["e"], output_format="list")[0]
    assert "NUM101" in run.data.tags["gradience.findings"].split()
    assert run.data.tags["gradience.NUM101"].startswith("step 4: Not finite: loss at step 4")
    assert sum("could not announce to github" in r.getMessage() for r in records) == 1


@pytest.mark.oracle("trackio")
def test_a_callback_without_a_run_to_tell_trains_all_the_same(training, callback, records, tmp_path):
    made = training.trainer(tmp_path, callback(announce=("trackio",)), max_steps=2)
    assert made.train().global_step == 2
    told = [r.getMessage() for r in records if "announced nowhere" in r.getMessage()]
    assert len(told) == 1
    assert "no run of trackio is open" in told[0]
    assert os.path.exists(tmp_path / "run.jsonl")  # noqa: PTH110  # plain
