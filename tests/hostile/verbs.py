"""Command lines of all verbs, over a place with an adapter `a`, another `b`, a `base`, a log and a `state`."""

from __future__ import annotations

__all__ = ["LOOKING"]

LOOKING = {
    "audit": ["audit", "@a", "--json"],
    "audit --base": ["audit", "@a", "--base", "@base", "--no-cache", "--json"],
    "audit sarif": ["audit", "@a", "--format", "sarif"],
    "audit text": ["audit", "@a"],
    "check": ["check", "--peft-dir", "@a", "--json"],
    "check --base": ["check", "--peft-dir", "@a", "--base", "@base", "--json"],
    "check sarif": ["check", "--peft-dir", "@a", "--set", "lr=1", "--format", "sarif"],
    "check github": ["check", "--peft-dir", "@a", "--set", "lr=1", "--format", "github"],
    "compare": ["compare", "@a", "@b", "--json"],
    "convert": ["convert", "@a", "--to", "mlx", "--out", "@c", "--json"],
    "diagnose": ["diagnose", "@", "--json"],
    "diagnose sarif": ["diagnose", "@", "--format", "sarif"],
    "import": ["import", "@state", "--out", "@i.jsonl", "--json"],
    "import in place": ["import", "@state", "--json"],
    "merge": ["merge", "@a", "@b", "--out", "@m", "--json"],
    "merge-check": ["merge-check", "@a", "@b", "--json"],
    "monitor": ["monitor", "@run.jsonl", "--json"],
    "monitor text": ["monitor", "@run.jsonl"],
    "monitor sarif": ["monitor", "@run.jsonl", "--format", "sarif"],
    "monitor two": ["monitor", "@run.jsonl", "@run.jsonl", "--json"],
    "report": ["report", "@", "--out", "@page.html"],
    "report text": ["report", "@"],
    "resize": ["resize", "@a", "--rank", "2", "--out", "@r", "--json"],
    "validate": ["validate", "@run.jsonl", "--json"],
    "verify-merge": ["verify-merge", "--base", "@base", "--adapter", "@a", "--merged", "@base", "--json"],
    "unwritable": ["convert", "@a", "--to", "mlx", "--out", "@a"],
    "missing": ["audit", "@nowhere", "--json"],
}
