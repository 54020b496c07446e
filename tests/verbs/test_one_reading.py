"""No two verbs say different things of one run: monitor, diagnose, report and runs, on every log at hand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tables import few

from gradience import runs
from gradience.blocks.markdown import escape
from gradience.rules.log.account import rate_of_run
from gradience.verbs.diagnose.run import diagnose
from gradience.verbs.diagnose.view import diagnose_text
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.monitor.view import monitor_text
from gradience.verbs.report.page import report_markdown
from gradience.verbs.report.story import Story

BAD = re.compile(
    r"overfits|gets worse|diverged|at chance|"
    r"(does not|no longer|hardly) falls?|the same data|swapped|one answer to every"
)


@pytest.fixture(scope="module")
def logs(root, tmp_path_factory):
    """Each published and constructed log as a folder, as its trainer left it."""
    shared = root.parent / "shared" / "data"
    states = [*(root / "tests/golden/field").glob("*.json")]
    states += [
        *shared.glob("field/*.json"),
        *shared.glob("trainer_states/*.json"),
        *shared.glob("field2/*/trainer_state.json"),
    ]
    parent = tmp_path_factory.mktemp("logs")
    for number, state in enumerate(few(sorted(states), each=3)):
        (parent / f"{number}").mkdir()
        shutil.copy(state, parent / f"{number}" / "trainer_state.json")
    return parent


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_bad_word_of_the_story_is_a_finding_that_is_shown_and_the_verdict_agrees(logs):
    apart = []
    for folder in sorted(logs.iterdir()):
        report, diagnosis = monitor_run(folder), diagnose(folder)
        shown = flat(monitor_text(report) + diagnose_text(diagnosis, verbose=True))
        told = {part.finding for part in report.story_parts if part.finding}
        findings = {finding.id for finding in report.findings}
        readings = {reading.id for reading in report.readings}
        if missing := told - findings - readings:
            apart.append((report.story, missing))
        if unseen := [name for name in told & findings if f"] {name}" not in shown]:
            apart.append((report.story, unseen))
        bad = [part for part in report.story_parts if BAD.search(part.says) and part.finding not in readings]
        if any(part.finding is None for part in bad) or (
            bad and diagnosis.verdict in {"no_fault_found", "could_not_judge"}
        ):
            apart.append((report.story, diagnosis.verdict))
    assert apart == []


def test_every_verb_gives_the_same_story_step_rate_loss_and_count(logs, tmp_path):
    store = runs.collect(logs, out=tmp_path / "store")
    names = ("path", "story", "steps", "lr", "best_eval_loss", "findings", "objective")
    rows = runs.query(store, "select path, story, steps, lr, best_eval_loss, findings, objective from runs").rows
    of_runs = {Path(str(row[0])).name: dict(zip(names, row, strict=True)) for row in rows}
    assert len(of_runs) == len(list(logs.iterdir()))
    for folder in sorted(logs.iterdir()):
        report, row = monitor_run(folder), of_runs[folder.name]
        of, loss = report.account, report.account.held_out_loss
        assert (row["story"], row["steps"]) == (report.story, report.train.last_step)
        assert row["lr"] == rate_of_run(of.schedule)
        assert row["best_eval_loss"] == (None if loss is None else loss.best)
        assert row["findings"] == ",".join(finding.id for finding in report.findings)
        assert row["objective"] == report.objective
        diagnosis = diagnose(folder)
        assert diagnosis.monitor is not None
        assert diagnosis.monitor.story == report.story
        assert escape(report.story)[1:] in report_markdown(Story(diagnosis))
