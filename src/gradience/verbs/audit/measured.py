"""The second step of an audit: the numbers of each module, from its factors alone or beside its base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from gradience.adapters.layout import Adapter, Module
from gradience.base.weights import factors_of
from gradience.errors import AdapterError
from gradience.folder import OpenAdapter
from gradience.io import Progress
from gradience.schema.audit import BaseReport, LedgerEntry, ModuleAudit
from gradience.spectral.batch import Spectrum, spectra
from gradience.spectral.grams import Factors, Grams, Loads
from gradience.verbs.audit.options import AuditOptions
from gradience.verbs.audit.rows import (
    ModuleNumbers,
    RowSettings,
    ledger_of,
    module_row,
    settings_of,
    unknown_row,
    with_shares,
)
from gradience.verbs.audit.tied import listed_once


class AdapterNumbers(NamedTuple):
    """The numbers of an adapter as its base showed it, if there is one: of each module, and of the file."""

    adapter: Adapter
    modules: list[ModuleAudit]
    errors: list[Sequence[float]]
    """Each module's relative errors at rank 0, 1, ..., as far as they are known."""
    ledger: list[LedgerEntry]
    notes: list[str]
    base: BaseReport | None


def measure(
    opened: OpenAdapter,
    options: AuditOptions,
    *,
    grams: Sequence[Grams] | None = None,
    progress: Progress | None = None,
) -> AdapterNumbers:
    """The numbers of every module. Each is loaded once, rarely twice; a base is read one weight at a time.

    Args:
        opened: the adapter.
        options: those of `audit_adapter`.
        grams: the Gram matrices of the modules, in order, if the caller has them.
        progress: as of `audit_adapter`.

    Raises:
        AdapterError: a tensor or the base cannot be read.
    """
    adapter = opened.adapter
    settings = settings_of(adapter, options.top_singular_values)
    loads = [factors_of(module) for module in adapter.modules]
    computed = spectra(loads if progress is None else _reported(loads, adapter.modules, progress), grams)
    each = zip(adapter.modules, computed, strict=True)
    adapter, modules, notes = listed_once(
        adapter, [_measurement(module, spectrum, settings) for module, spectrum in each]
    )
    report = None
    if options.base is not None:
        if opened.is_unscaled:
            raise AdapterError(
                "a base is compared with the update at its scale, and no adapter_config.json states that",
                advice="give it with --adapter-config",
            )
        from gradience.verbs.audit.against_base import compare  # keeps a plain audit quick

        base = Path(options.base)
        adapter, modules, report = compare(
            adapter, modules, options, base=base, config=opened.config, progress=progress
        )
    rows = with_shares([module.row for module in modules])
    return AdapterNumbers(
        adapter,
        rows,
        errors=[module.errors for module in modules],
        ledger=ledger_of(adapter),
        notes=notes,
        base=report,
    )


def _reported(loads: Loads, modules: Sequence[Module], progress: Progress) -> Loads:
    """The loads, which say how many of them were called; threads call them, in any order."""
    done, total = count(1), len(loads)

    def reporting(load: Callable[[], Factors], name: str) -> Callable[[], Factors]:
        def loaded() -> Factors:
            factors = load()
            # Factors that almost cancel are loaded a second time (`spectra`).
            progress(min(next(done), total), total, name)
            return factors

        return loaded

    return [reporting(load, module.name) for load, module in zip(loads, modules, strict=True)]


def _measurement(module: Module, spectrum: Spectrum, settings: RowSettings) -> ModuleNumbers:
    """A module without the base; factors that are not finite are reported even if the update is unknown."""
    if spectrum.finite and (module.dense is not None or module.is_unknown):
        return unknown_row(module)
    return module_row(module, spectrum, settings)
