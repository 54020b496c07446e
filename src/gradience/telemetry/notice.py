"""A warning of the recorder's own: it never ends a training, also where warnings are errors."""

from __future__ import annotations

import logging
import warnings

logger = logging.getLogger("gradience")


def notice(message: str, *, stacklevel: int = 3) -> None:
    """Warn, with a RuntimeWarning; where warnings are errors, through logging."""
    try:
        warnings.warn(f"gradience: {message}", RuntimeWarning, stacklevel=stacklevel)
    except RuntimeWarning:
        logger.warning("gradience: %s", message)
