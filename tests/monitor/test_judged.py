"""The page of judged files says what the monitor says now."""

from __future__ import annotations

import tomllib

from gradience.verbs.monitor.run import monitor_run


def test_every_real_log_is_on_the_page_with_its_story_and_a_judgement(root, shared_data):
    page = (root / "benchmarks" / "judged.md").read_text(encoding="utf-8")
    judged = tomllib.loads((root / "benchmarks" / "judged.toml").read_text(encoding="utf-8"))["logs"]
    patterns = ("runs/*.jsonl", "trainer_states/*.json", "trainer_logs/*.jsonl", "adapters/*/trainer_state.json")
    logs = {str(path.relative_to(shared_data)) for pattern in patterns for path in shared_data.glob(pattern)}
    assert logs == judged.keys()
    for name in logs:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert monitor_run(shared_data / name).story in row, "run: python benchmarks/judged.py ../shared/data"
        assert judged[name]["judged"] in {"right", "wrong", "missing"}
        assert f"**{judged[name]['judged']}**" in row
