"""Other people's logs to events: a finished run becomes a `run.jsonl` with zero code."""

from __future__ import annotations

from gradience.importers.run import Imported, ImportedRun, is_foreign, read_folder_config, read_source

__all__ = ["Imported", "ImportedRun", "is_foreign", "read_folder_config", "read_source"]
