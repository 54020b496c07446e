"""The tables of a fleet."""

from __future__ import annotations

from typing import Final

from gradience.schema.fleet import FLEET_SCHEMA_ID, AdapterRow, FindingRow, ModuleRow
from gradience.verbs.fleet.store import Tables

FLEET: Final = Tables(FLEET_SCHEMA_ID, {"adapters": AdapterRow, "modules": ModuleRow, "findings": FindingRow})
