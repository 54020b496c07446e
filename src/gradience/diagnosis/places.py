"""The file and line that each cause of a diagnosis points at, for other programs' formats."""

from __future__ import annotations

from gradience.check.places import places as config_places
from gradience.monitor.places import log_place
from gradience.render.cards import Place
from gradience.schema.diagnose import Cause, DiagnoseReport, PieceSource

__all__ = ["places"]


def places(report: DiagnoseReport) -> list[Place | None]:
    """Return a place for each cause, in their order: that of its first piece that has one."""
    of_config = _of_config(report)
    of_source = {
        "log": log_place(report.monitor.file) if report.monitor else None,
        "weights": Place(report.audit.weights_path) if report.audit else None,
    }
    return [_place(cause, of_config, of_source) for cause in report.causes]


def _of_config(report: DiagnoseReport) -> dict[str, Place | None]:
    """Return where the findings on the configuration point, by id; of several of one id the first."""
    if report.check is None:
        return {}
    found = zip(report.check.findings, config_places(report.check), strict=True)
    return {finding.id: place for finding, place in reversed(list(found))}


def _place(cause: Cause, of_config: dict[str, Place | None], of_source: dict[str, Place | None]) -> Place | None:
    found = (_of_piece(piece.source, piece.id, of_config, of_source) for piece in cause.pieces)
    return next((place for place in found if place is not None), None)


def _of_piece(
    source: PieceSource, rule: str, of_config: dict[str, Place | None], of_source: dict[str, Place | None]
) -> Place | None:
    return of_config.get(rule) if source == "config" else of_source.get(source)
