"""The audit: an adapter's files in, a typed report out."""

from __future__ import annotations

from gradience.verbs.audit.adapter import audit_adapter
from gradience.verbs.audit.arrays import audit_arrays, audit_pytree
from gradience.verbs.audit.log import lora_audit_metrics

__all__ = ["audit_adapter", "audit_arrays", "audit_pytree", "lora_audit_metrics"]
