"""Compare what `check` and `monitor` say of real files with a person's view: ``python benchmarks/judged.py DATA``.

This runs both on every config and log of a folder (../shared/data), and prints benchmarks/judged.md. The person's view
and the judgement are in benchmarks/judged.toml. A file that is missing there is listed as not judged.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gradience.schema.document import Finding
from gradience.verbs.check.run import check_config
from gradience.verbs.monitor.run import monitor_run

JUDGED = Path(__file__).with_suffix(".toml")
LOGS = ("runs/*.jsonl", "trainer_states/*.json", "trainer_logs/*.jsonl", "adapters/*/trainer_state.json")
CONFIGS = ("configs/*.json", "adapters/*/adapter_config.json")
HEAD = """# Findings on real files, judged by hand

This page lists every config and log among the real files that development uses, as other people's runs left them.
Their sources and licences are in that folder's README. One person judged, who knew the tool: read it as a list of
cases, not as a score.

- **seen**: what a person sees in the numbers.
- **said**: what `gradience monitor` or `gradience check` says of the file alone.
- **judged**: **right** if all that is said holds and nothing is missing; **wrong** if something said does not hold;
  **missing** if something that a person sees is not said.

`python benchmarks/judged.py ../shared/data > benchmarks/judged.md` makes this page. The judgements are in
`benchmarks/judged.toml`.
"""


def found(data: Path, patterns: Iterable[str]) -> list[str]:
    """Return the files of the folder that match, by name."""
    return [str(path.relative_to(data)) for pattern in patterns for path in sorted(data.glob(pattern))]


def cell(text: str) -> str:
    """Return the text, escaped for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def ids(findings: Iterable[Finding]) -> str:
    """Return ids and severities."""
    return ", ".join(f"{f.id} ({f.severity})" for f in findings) or "nothing"


def row(name: str, said: str, judgement: dict[str, Any]) -> str:
    verdict = f"**{judgement.get('judged', 'not judged')}**"
    why = f". {judgement['why']}" if "why" in judgement else ""
    return f"| `{name}` | {cell(judgement.get('seen', ''))} | {cell(said)} | {verdict}{cell(why)} |"


def log_rows(data: Path, judged: dict[str, Any]) -> Iterator[str]:
    """Yield a row for each log."""
    for name in found(data, LOGS):
        report = monitor_run(data / name)
        yield row(name, f"{report.story}. {ids(report.findings)}", judged.get(name, {}))


def config_rows(data: Path, judged: dict[str, Any], others: dict[str, Any]) -> Iterator[str]:
    """Yield a row for each config. Configs that are not judged and have the same findings share a row."""
    rest: Counter[str] = Counter()
    for name in found(data, CONFIGS):
        said = ids(check_config(document=data / name).findings)
        if name in judged:
            yield row(name, said, judged[name])
        else:
            rest[said] += 1
    for said, count in rest.items():
        yield row(f"configs/peft-*.json, {count} others", said, others)


def counts(sections: Iterable[dict[str, Any]]) -> str:
    """Return how often each judgement was given."""
    given = Counter(judgement["judged"] for section in sections for judgement in section.values())
    return ", ".join(f"{given[word]} {word}" for word in ("right", "missing", "wrong"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    judged = tomllib.loads(JUDGED.read_text(encoding="utf-8"))
    logs, configs = judged["logs"], judged["configs"]
    out = [HEAD, f"Logs: {counts([logs])}. Configs: {counts([configs, {'others': judged['others']}])}.\n"]
    columns = "| file | seen | said | judged |\n|---|---|---|---|"
    out += ["## Logs\n", columns, *log_rows(data, logs), "\n## Configs\n", columns]
    out += config_rows(data, configs, judged["others"])
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
