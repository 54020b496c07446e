"""Findings and a run's story where a team looks, off unless asked for: each place through its own package.

| place | its package, or address | what is written |
|---|---|---|
| `wandb` | the run that is open, or that of `WANDB_RUN_ID` | alerts, the summary, the rules as tags |
| `mlflow` | the run that is open, or that of `MLFLOW_RUN_ID` | tags, and the text as an artifact |
| `trackio` | the run that is open, or `TRACKIO_PROJECT` and `TRACKIO_RUN` | alerts |
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
from contextlib import ExitStack, redirect_stdout
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, get_args

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


class Told(NamedTuple):
    """A finding of a step, or the whole of a run if `step` is None."""

    title: str
    text: str
    severity: Severity
    rules: tuple[str, ...] = ()
    step: int | None = None


_Sender: TypeAlias = Callable[[Told], None]


def of_finding(finding: Finding, step: int) -> Told:
    """What is told of a finding while a run goes on."""
    text = " -> ".join(part for part in (finding.message, finding.action) if part)
    return Told(f"gradience: {finding.id} at step {step}", text, finding.severity, (finding.id,), step)


def of_report(title: str, text: str, findings: Iterable[Finding]) -> Told:
    """What is told of a whole report: its text, and the rules that found something."""
    graver = by_severity(findings)
    severity: Severity = graver[0].severity if graver else "info"
    return Told(title, text, severity, tuple(dict.fromkeys(finding.id for finding in graver)))


def checked(places: Iterable[Place], *, within: bool = False) -> tuple[Place, ...]:
    """The places, each once.

    Args:
        places: where to tell.
        within: the process trains, so that each tracker's run is the one that its own callback opened.

    Raises:
        GradienceError: a place is not known, its package is missing, or the environment names no run or address.
    """
    asked = tuple(dict.fromkeys(places))
    for place in asked:
        if place not in _OPENERS:
            expected = ", ".join(get_args(Place))
            raise GradienceError(f"cannot announce to {place!r}", advice=f"expected one of {expected}")
        if place in _PACKAGES and find_spec(place) is None:
            raise GradienceError(f"announcing to {place} needs its package", advice=f"pip install {place}")
        for name in () if within and place in _PACKAGES else _NEEDED.get(place, ()):
            if not os.environ.get(name):
                raise GradienceError(f"announcing to {place} needs {name} in the environment", advice=f"set {name}")
    if "webhook" in asked and not _ADDRESS.match(os.environ[WEBHOOK]):
        raise GradienceError(f"{WEBHOOK} is no address of http or https", advice="give the address that Slack shows")
    return asked


class Announcer:
    """Tells the places asked for; as a context manager it closes the runs that it opened itself.

    Args:
        places: where to tell.
        folder: the run's folder, for TensorBoard's file.
        within: the process trains, so that each tracker's run is the one that its own callback opened.

    Raises:
        GradienceError: a place is not known, its package is missing, or the environment names no run or address.
    """

    def __init__(self, places: Iterable[Place], folder: Path, *, within: bool = False) -> None:
        self._stack = ExitStack()
        asked = checked(places, within=within)
        self._senders = {place: _OPENERS[place](self._stack, folder, within) for place in asked}

    def __enter__(self) -> Self:
        """Begin a block in which things are told."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened here."""
        try:
            self._stack.close()
        except Exception as error:  # noqa: BLE001  # foreign packages may raise anything
            logger.warning("gradience: an announcement could not be finished: %s", type(error).__name__)

    def tell(self, told: Told) -> None:
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


def _wandb(stack: ExitStack, _folder: Path, within: bool) -> _Sender:  # noqa: FBT001  # called by `Announcer` alone
    import wandb  # the user's own

    if wandb.run is None and not within:
        opened: Any = wandb.init(resume="allow")
        stack.callback(opened.finish)

    def send(told: Told) -> None:
        run = wandb.run
        if run is None:
            raise GradienceError("no run of wandb is open")
        if told.severity != "info":
            run.alert(title=told.title, text=told.text, level=_LEVELS[told.severity])
        if told.step is None:
            run.summary["gradience"] = told.text
            run.tags = tuple(dict.fromkeys([*(run.tags or ()), *told.rules]))

    return send


def _mlflow(_stack: ExitStack, _folder: Path, _within: bool) -> _Sender:  # noqa: FBT001  # likewise
    import mlflow  # the user's own

    active = mlflow.active_run()
    # The Trainer's callback ends the run before others hear that training ended: the id outlives it.
    known = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID", "")

    def send(told: Told) -> None:
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


def _trackio(_stack: ExitStack, _folder: Path, within: bool) -> _Sender:  # noqa: FBT001  # likewise
    import trackio as package  # the user's own

    trackio: Any = package  # without types
    open_run: Any = trackio.context_vars.current_run.get()
    if open_run is not None:
        project, name = open_run.project, open_run.name
    elif within:
        raise GradienceError("no run of trackio is open", advice='give the Trainer report_to="trackio"')
    else:
        project, name = (os.environ[key] for key in _NEEDED["trackio"])

    def send(told: Told) -> None:
        reopened = trackio.context_vars.current_run.get() is None
        with redirect_stdout(sys.stderr):  # where trackio talks, a command's document may be printed
            if reopened:
                trackio.init(project=project, name=name, resume="must")
            trackio.alert(told.title, told.text, trackio.AlertLevel[_LEVELS[told.severity]])
            if reopened:
                trackio.finish()

    return send


def _tensorboard(_stack: ExitStack, folder: Path, _within: bool) -> _Sender:  # noqa: FBT001  # likewise
    def send(told: Told) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the user's own

        with SummaryWriter(folder / "gradience") as writer:
            tag = "gradience" if told.step is None else f"gradience/{told.rules[0]}"
            writer.add_text(tag, f"{told.title}\n\n{_fenced(told.text)}", told.step)

    return send


def _webhook(_stack: ExitStack, _folder: Path, _within: bool) -> _Sender:  # noqa: FBT001  # likewise
    address = os.environ[WEBHOOK]

    def send(told: Told) -> None:
        from gradience.io.web import Request, ask  # only here

        text = f"*{told.title}*\n```{told.text[:_MOST]}```".translate(_SLACK)
        body = msgspec.json.encode({"text": text})
        asked = Request(address, body, {"Content-Type": "application/json"}, by_proxy=True)
        code = ask(asked, deadline=_SECONDS, most_bytes=_ANSWER, most_values=_ANSWER).code
        if not HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES:
            raise GradienceError(f"HTTP {code}")

    return send


def _github(_stack: ExitStack, _folder: Path, _within: bool) -> _Sender:  # noqa: FBT001  # likewise
    path = Path(os.environ[_SUMMARY])

    def send(told: Told) -> None:
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
_NEEDED: Final[dict[Place, tuple[str, ...]]] = {
    "wandb": ("WANDB_RUN_ID",),
    "mlflow": ("MLFLOW_RUN_ID",),
    "trackio": ("TRACKIO_PROJECT", "TRACKIO_RUN"),
    "webhook": (WEBHOOK,),
    "github": (_SUMMARY,),
}
_OPENERS: Final[dict[Place, Callable[[ExitStack, Path, bool], _Sender]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
    "webhook": _webhook,
    "github": _github,
}
