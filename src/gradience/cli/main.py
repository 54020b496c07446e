"""The ``gradience`` command: a table of lazily imported commands, and the exit codes.

Exit codes: 0 done, 1 findings at or above ``--fail-on``, 2 unusable input or usage, 3 no verdict (verify-merge).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from gradience.cli.output import with_flowing_help
from gradience.errors import GradienceError

UNUSABLE = 2
_INTERRUPTED = 130  # 128 + SIGINT, as a shell counts

_GC_THRESHOLDS = (100_000, 50, 100)  # importing jax alone runs the defaults (700, 10, 10) a hundred times, in vain

COMMANDS = {
    "check": "gradience.cli.check:check",
    "monitor": "gradience.cli.monitor:monitor",
    "import": "gradience.cli.import_run:import_run",
    "audit": "gradience.cli.audit:audit",
    "diagnose": "gradience.cli.diagnose:diagnose",
    "compare": "gradience.cli.compare:compare",
    "report": "gradience.cli.report:report",
    "resize": "gradience.cli.resize:resize",
    "mitigate": "gradience.cli.mitigate:mitigate",
    "convert": "gradience.cli.convert:convert",
    "merge": "gradience.cli.merge:merge",
    "merge-check": "gradience.cli.merge:merge_check",
    "verify-merge": "gradience.cli.verify_merge:verify_merge",
    "rules": "gradience.cli.schema:rules",
    "validate": "gradience.cli.schema:validate",
    "schema": "gradience.cli.schema:schema",
}

_HELP = {
    "check": "Validate a PEFT and training configuration before burning compute.",
    "monitor": "Summarise a run from its telemetry (run.jsonl).",
    "import": "Turn a finished run of another program into a run.jsonl.",
    "audit": "Analyse a trained adapter for waste, and for what is wrong with it.",
    "diagnose": "Join a run's config, log and weights into one verdict with its causes.",
    "compare": "Compare trained adapters, or the checkpoints of a run, by their weights.",
    "report": "Write one file about a run: a page to look at, or Markdown for a pull request.",
    "mitigate": "Write a copy of an adapter whose intruder dimensions are scaled down.",
    "resize": "Write a copy of an adapter with lower ranks, each update the best of its rank.",
    "convert": "Write an adapter in another format: plain PEFT LoRA or MLX-LM.",
    "merge": "Merge adapters of one base model into one, with the error of every module.",
    "merge-check": "Say what would get in each other's way if adapters were merged.",
    "verify-merge": "Say whether a merged model contains an adapter, tensor by tensor.",
    "rules": "List every rule by where it applies, or explain one with its grounds.",
    "validate": "Check every line of a run.jsonl against the telemetry schema.",
    "schema": "Print a JSON Schema: of a line of a log, or of a report.",
}


def build_app(asked: str | None = None) -> App:
    """Return the command table; a command's module is imported when it runs.

    Args:
        asked: the command that will run: its help is its own docstring, and the one line here serves the others.
    """
    app = App(
        name="gradience",
        help="Flight recorder and mechanic for LoRA fine-tuning. It instruments; you decide.",
        version=_version,
        help_format="plaintext",
        result_action="return_value",
    )
    for name, target in COMMANDS.items():
        if name == asked:
            app.command(with_flowing_help(target), name=name)
        else:
            app.command(target, name=name, help=_HELP[name])
    return app


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  # 15 ms that only --version pays for

    return version("gradience")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors meant for the user become one line and a 2."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        result = build_app(tokens[0] if tokens else None)(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(str(error), "see 'gradience --help', or --help after a command")
    except GradienceError as error:
        return _fail(str(error), error.advice)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`): not an error worth a message
        return 0
    return result if isinstance(result, int) else 0


def script() -> int:
    """Run the command line as a process of its own."""
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write("gradience: interrupted\n")
        return _INTERRUPTED
    finally:
        gc.freeze()  # the process ends here: nothing is gained by searching it for garbage once more


def _fail(message: str, advice: str) -> int:
    from gradience.render.text import clean  # noqa: PLC0415  # only a failure pays for it

    tail = f" ({advice})" if advice else ""
    sys.stderr.write(f"gradience: {clean(' '.join(message.split()))}{clean(tail)}\n")
    return UNUSABLE
