"""Findings and the story of a run that trains, where a team looks; off unless asked for.

| place | its package, or address | what is written |
|---|---|---|
| `wandb` | the run that is open | alerts, the summary, the rules as tags |
| `mlflow` | the run that is open | tags, and the text as an artifact |
| `trackio` | the run that is open | alerts |
| `tensorboard` | a file of events in `<folder>/gradience` | text |
| `webhook` | `GRADIENCE_WEBHOOK_URL` | a message in Slack's format |
| `github` | `GITHUB_STEP_SUMMARY` | a section of the job's summary |

Secrets are hidden in every text, and an address is never shown. A place that fails is left alone from then on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import msgspec

from gradience.errors import GradienceError
from gradience.schema import Severity
from gradience.schema.document import Finding, by_severity
from gradience.telemetry.logfile import logger
from gradience.telemetry.secrets import hide_secrets

Place: TypeAlias = Literal["wandb", "mlflow", "trackio", "tensorboard", "webhook", "github"]

WEBHOOK: Final = "GRADIENCE_WEBHOOK_URL"
_SUMMARY: Final = "GITHUB_STEP_SUMMARY"
_SECONDS: Final = 5.0  # that a training waits for a webhook's whole answer
_ANSWER: Final = 1 << 16  # bytes of it
_MOST: Final = 3000  # characters of a message: Slack's limit for a block
_SLACK: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_LEVELS: Final[dict[Severity, str]] = {"info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}
_ADDRESS: Final = re.compile(r"https?://[^/\s]", re.IGNORECASE)
_TICKS: Final = re.compile("`+")


class Announcement(NamedTuple):
    """A finding of a step, or the whole of a run if `step` is None."""

    title: str
    text: str
    severity: Severity
    rules: tuple[str, ...] = ()
    step: int | None = None


_Sender: TypeAlias = Callable[[Announcement], None]


def of_finding(finding: Finding, step: int) -> Announcement:
    """What is told of a finding while a run goes on."""
    return Announcement(
        f"gradience: {finding.id} at step {step}", _words(finding), finding.severity, (finding.id,), step
    )


def _words(finding: Finding) -> str:
    return " -> ".join(part for part in (finding.message, finding.action) if part)


def of_report(title: str, text: str, findings: Iterable[Finding]) -> Announcement:
    """What is told of a whole run: a text, and the rules that found something."""
    graver = by_severity(findings)
    severity: Severity = graver[0].severity if graver else "info"
    return Announcement(title, text, severity, tuple(dict.fromkeys(finding.id for finding in graver)))


def checked(places: Iterable[Place]) -> tuple[Place, ...]:
    """The places, each once.

    Raises:
        GradienceError: a place is not known, its package is missing, or the environment names no address.
    """
    chosen = tuple(dict.fromkeys(places))
    for place in chosen:
        if place not in _OPENERS:
            expected = ", ".join(get_args(Place))
            raise GradienceError(f"cannot announce to {place!r}", advice=f"expected one of {expected}")
        if place in _PACKAGES and find_spec(place) is None:
            raise GradienceError(f"announcing to {place} needs its package", advice=f"pip install {place}")
        if (name := _NEEDED.get(place)) and not os.environ.get(name):
            raise GradienceError(f"announcing to {place} needs {name} in the environment", advice=f"set {name}")
    if "webhook" in chosen and not _ADDRESS.match(os.environ[WEBHOOK]):
        raise GradienceError(f"{WEBHOOK} is no address of http or https", advice="give the address that Slack shows")
    return chosen


class Announcer:
    """Tells the places asked for; a tracker's run is the one that is open.

    Args:
        places: where to tell.
        folder: the run's folder, for TensorBoard's file.

    Raises:
        GradienceError: a place is not known, its package is missing, or the environment names no address.
    """

    def __init__(self, places: Iterable[Place], folder: Path) -> None:
        self._senders = {place: _OPENERS[place](folder) for place in checked(places)}

    def tell(self, told: Announcement) -> None:
        """Tell every place; one that fails is named once, and left alone from then on."""
        hidden = told._replace(title=hide_secrets(told.title), text=hide_secrets(told.text))
        for place, send in list(self._senders.items()):
            try:
                send(hidden)
            except Exception as error:  # noqa: BLE001  # likewise; its text may show an address
                del self._senders[place]
                logger.warning("gradience: could not announce to %s, which is left alone: %s", place, _kind(error))


def _kind(error: Exception) -> str:
    return str(error) if isinstance(error, GradienceError) else type(error).__name__


def _wandb(_folder: Path) -> _Sender:
    import wandb  # the user's own

    def send(told: Announcement) -> None:
        run = wandb.run
        if run is None:
            raise GradienceError("no run of wandb is open")
        if told.severity != "info":
            run.alert(title=told.title, text=told.text, level=_LEVELS[told.severity])
        if told.step is None:
            run.summary["gradience"] = told.text
            run.tags = tuple(dict.fromkeys([*(run.tags or ()), *told.rules]))

    return send


def _mlflow(_folder: Path) -> _Sender:
    import mlflow  # the user's own

    active = mlflow.active_run()
    # The Trainer's callback ends the run before others hear that training ended: the id outlives it.
    known = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID", "")  # which MLflow's callback reads

    def send(told: Announcement) -> None:
        if not known:
            raise GradienceError("no run of mlflow is open")
        client = mlflow.MlflowClient()
        if told.step is not None:
            client.set_tag(known, f"gradience.{told.rules[0]}", f"step {told.step}: {told.text}"[:_MOST])
            return
        client.set_tag(known, "gradience.findings", " ".join(told.rules) or "none")
        client.set_tag(known, "gradience.summary", told.text[:_MOST])
        client.log_text(known, told.text, "gradience.txt")

    return send


def _trackio(_folder: Path) -> _Sender:
    import trackio as package  # the user's own

    trackio: Any = package  # without types
    open_run: Any = trackio.context_vars.current_run.get()
    if open_run is None:
        raise GradienceError("no run of trackio is open", advice='give the Trainer report_to="trackio"')
    project, name = open_run.project, open_run.name

    def send(told: Announcement) -> None:
        reopened = trackio.context_vars.current_run.get() is None
        with redirect_stdout(sys.stderr):  # where trackio talks
            if reopened:
                trackio.init(project=project, name=name, resume="must")
            trackio.alert(told.title, told.text, trackio.AlertLevel[_LEVELS[told.severity]])
            if reopened:
                trackio.finish()

    return send


def _tensorboard(folder: Path) -> _Sender:
    def send(told: Announcement) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the user's own

        with SummaryWriter(folder / "gradience") as writer:
            tag = "gradience" if told.step is None else f"gradience/{told.rules[0]}"
            writer.add_text(tag, f"{told.title}\n\n{_fenced(told.text)}", told.step)

    return send


def _webhook(_folder: Path) -> _Sender:
    address = os.environ[WEBHOOK]

    def send(told: Announcement) -> None:
        from gradience.io.web import Request, ask  # only here

        text = f"*{told.title}*\n```{told.text[:_MOST]}```".translate(_SLACK)
        body = msgspec.json.encode({"text": text})
        request = Request(address, body, {"Content-Type": "application/json"}, by_proxy=True)
        code = ask(request, deadline=_SECONDS, most_bytes=_ANSWER, most_values=_ANSWER).code
        if not HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES:
            raise GradienceError(f"HTTP {code}")

    return send


def _github(_folder: Path) -> _Sender:
    path = Path(os.environ[_SUMMARY])

    def send(told: Announcement) -> None:
        # A job's page has one section, in which the story names the findings again.
        if told.step is None:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"### {_TICKS.sub('', told.title)}\n\n{_fenced(told.text)}\n")

    return send


def _fenced(text: str) -> str:
    """The text as a block of code of Markdown, which it cannot end."""
    fence = max(_TICKS.findall(text), key=len, default="")
    fence = "`" * max(3, len(fence) + 1)
    return f"{fence}text\n{text}\n{fence}\n"


_PACKAGES: Final = frozenset({"wandb", "mlflow", "trackio", "tensorboard"})
_NEEDED: Final[dict[Place, str]] = {"webhook": WEBHOOK, "github": _SUMMARY}
_OPENERS: Final[dict[Place, Callable[[Path], _Sender]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
    "webhook": _webhook,
    "github": _github,
}
