"""Count, for each rule, the repositories in which it was judged and spoke: ``python benchmarks/spoke.py FOLDER``.

FOLDER has a folder for each repository, with what its runs left. Logs, configurations, adapters and, with a tokenizer,
data sets are each read alone. The newest of a run's checkpoints stands for it.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import gradience
from gradience.rules import rule_cards
from gradience.schema.document import Finding, NotRun


def newest(paths: Iterable[Path]) -> list[Path]:
    """One path of each run: that below its last checkpoint."""
    runs: dict[str, tuple[int, Path]] = {}
    for path in paths:
        steps = [int(step) for step in re.findall(r"checkpoint-(\d+)", str(path))]
        run = re.sub(r"/checkpoint-\d+", "", str(path))
        runs[run] = max(runs.get(run, (-1, path)), (steps[-1] if steps else 1 << 60, path))
    return sorted(path for _, path in runs.values())


def read(path: Path, verb: Callable[[Path], tuple[list[Finding], list[NotRun]]]) -> tuple[set[str], set[str]] | None:
    """The ids that spoke, and those not judged; None if the input is refused."""
    try:
        findings, not_run = verb(path)
    except gradience.GradienceError:
        return None
    return {item.id for item in findings}, {item.id for item in not_run}


def main() -> None:
    """Print a line for each rule: id, repositories judged, repositories in which it spoke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    options = parser.parse_args()

    def of(report: object) -> tuple[list[Finding], list[NotRun]]:
        return report.findings, report.not_run  # type: ignore[attr-defined]  # every report has both

    verbs = {
        "log": ("trainer_state.json", lambda path: of(gradience.monitor_run(path))),
        "config": ("adapter_config.json", lambda path: of(gradience.check_config(document=path))),
        "weights": ("adapter_model.safetensors", lambda path: of(gradience.audit_adapter(path.parent))),
        "data": ("*.jsonl", lambda path: of(gradience.check_data(path, tokenizer=options.tokenizer))),
    }
    judged, spoke = defaultdict(set), defaultdict(set)
    for group, (pattern, verb) in verbs.items():
        for path in newest(options.folder.rglob(pattern)):
            found = read(path, verb)
            if found is None:
                continue
            repository = path.relative_to(options.folder).parts[0]
            for card in rule_cards():
                if group in card.groups and card.id not in found[1]:
                    judged[card.id].add(repository)
            for rule in found[0]:
                spoke[rule].add(repository)
    for card in rule_cards():
        print(card.id, len(judged[card.id]), len(spoke[card.id]))


if __name__ == "__main__":
    main()
