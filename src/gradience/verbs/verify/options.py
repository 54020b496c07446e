"""What `gradience verify` asks a target for, and of whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradience.commands import options as opt


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What is asked, and of whom.

    Parameters
    ----------
    receipt:
        A file of 'gradience receipt': what serves, or the merged model, is asked for the same.
    model:
        The name under which a server serves the adapter.
    timeout:
        Seconds that one request may take, or a command until it serves.
    serve:
        The engine that serves, as of check; else as the server says. With --adapter: which foretold loss is the case.
    server_flags:
        The flags that the server was started with, as of check; of a command those in it.
    """

    receipt: Path | None = None
    model: str | None = None
    timeout: float = 120.0
    serve: str | None = None
    server_flags: opt.ServerFlags = ""
