"""Help that flows: a docstring's own line breaks give way to those of the terminal's width."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from inspect import cleandoc
from pathlib import Path
from types import FrameType
from typing import Final, Literal, TypeAlias

import msgspec

from gradience.errors import GradienceError
from gradience.render.text import Place
from gradience.schema.document import Report
from gradience.schema.findings import SEVERITIES, Finding, FindingRef, NotRun, RuleGroup
from gradience.schema.scalars import Severity

_UNDERLINE = "----"


def with_flowing_help(target: str) -> Callable[..., object]:
    """Return the command `module:function` with each paragraph of its docstring on one line."""
    module, _, name = target.partition(":")
    command: Callable[..., object] = getattr(import_module(module), name)
    command.__doc__ = flowing(cleandoc(command.__doc__ or ""))
    return command


def flowing(text: str) -> str:
    """Return the text with lines joined that stand at the same depth; below an underline, indented ones only."""
    lines: list[str] = []
    listing = False
    for line in text.splitlines():
        listing = listing or line.startswith(_UNDERLINE)
        before = lines[-1] if lines else ""
        alike = before.strip() and line.strip() and _depth(before) == _depth(line)
        if alike and (_depth(line) > 0 or not listing):
            lines[-1] = f"{before} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


_SIGNAL_CODES = 128  # a shell's exit code of a program that a signal ended is 128 + its number


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside the block, unless the process has a handler of its own for it."""
    in_charge = threading.current_thread() is threading.main_thread()
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_SIGNAL_CODES + number)


DONE: Final = 0
FOUND: Final = 1


def draws_blocks() -> bool:
    """Return whether stdout can write block characters."""
    try:
        "█▁".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_text(text: str) -> None:
    """Print a report for people."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_document(document: Report) -> None:
    """Print exactly one JSON document."""
    sys.stdout.write(document.to_json() + "\n")
    sys.stdout.flush()


def exit_code(findings: Iterable[Finding | FindingRef], fail_on: Severity | None) -> int:
    """Return 1 if a finding is at or above the severity, else 0."""
    if fail_on is None:
        return DONE
    bar = SEVERITIES.index(fail_on)
    return FOUND if any(SEVERITIES.index(f.severity) >= bar for f in findings) else DONE


_EVERY: Final = 0.1  # seconds between two drawings
_WIDTH: Final = 79


def on_terminal(what: str) -> Callable[[int, int, str], None] | None:
    """Return a function that draws (done, total, name) on one line of stderr; None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    start = last = time.monotonic()

    def draw(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and done > 0 and now - last < _EVERY:
            return
        last = now
        left = f", {(now - start) * (total - done) / done:.0f} s left" if done else ""
        line = f"{what}: {done}/{total}{left}  {name}" if total else f"{what}: {name}"
        sys.stderr.write("\r" + (line[:_WIDTH].ljust(_WIDTH) if done < total or not total else " " * _WIDTH + "\r"))
        sys.stderr.flush()

    return draw


_SERIAL: Final = "--xla_cpu_multi_thread_eigen"
_CACHE_FAILED: Final = "Error (reading|writing) persistent compilation cache entry"


def prepare_jax(device: str, *, serial_kernels: bool = False) -> None:
    """Set this process's JAX up: no preallocation, compiled kernels kept between runs.

    Args:
        device: `auto`, `cpu`, `gpu` or `tpu`.
        serial_kernels: on a CPU, run each kernel on the thread that calls it. Right where there are more
            modules than cores: the threads of one small product only get in each other's way.

    Raises:
        GradienceError: there is no such device.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    if serial_kernels and _SERIAL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_SERIAL}=false".lstrip()
    import jax  # noqa: PLC0415  # only an audit pays for it

    if serial_kernels:
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # noqa: FBT003  # JAX's own signature

    if (cache := _cache_dir()) is not None:
        warnings.filterwarnings("ignore", message=_CACHE_FAILED)  # of a full disk, and for ever after: it compiles
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from gradience.spectral.batch import use_device  # noqa: PLC0415

    try:
        use_device(device)
    except ValueError as error:
        raise GradienceError(str(error), advice="use --device auto") from error


def _cache_dir() -> Path | None:
    """Return the user's cache folder for compiled kernels, or None where there is none to write to."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradience" / "jax"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a read-only home: compile again next time
    return root if os.access(root, os.W_OK) else None


Format: TypeAlias = Literal["text", "json", "sarif", "github"]


def chosen_format(given: Format | None, *, json: bool) -> Format:
    """Return the format asked for; `--json` is short for `--format json`.

    Raises:
        GradienceError: both are given, and differ.
    """
    if json and given not in {None, "json"}:
        raise GradienceError(f"--json and --format {given} ask for different things", advice="give one of them")
    return "json" if json else given or "text"


def print_for_programs(
    kind: Literal["sarif", "github"],
    findings: Sequence[Finding],
    *,
    places: Sequence[Place | None],
    groups: Sequence[RuleGroup],
    not_run: Iterable[NotRun] = (),
) -> None:
    """Print findings as SARIF 2.1.0 (one JSON document) or as annotations of GitHub Actions (a line each).

    Args:
        kind: which.
        findings: what was found.
        places: where each of them points, in their order; None where nowhere.
        groups: of the rules that were applied, for SARIF.
        not_run: the rules that could not be judged, for SARIF.
    """
    if kind == "github":
        from gradience.render.formats import github_lines  # noqa: PLC0415  # for those who ask

        sys.stdout.writelines(f"{line}\n" for line in github_lines(findings, places=places))
        sys.stdout.flush()
        return
    from gradience.render.formats import sarif_log  # noqa: PLC0415  # the same
    from gradience.rules.registry import cards_of  # noqa: PLC0415  # the same

    log = sarif_log(
        findings,
        places=places,
        known=cards_of(*groups),
        not_run=not_run,
        version=version("gradience"),
        root=Path.cwd(),
    )
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(log)).decode() + "\n")
