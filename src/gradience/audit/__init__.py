"""The audit: an adapter's files in, a typed report out."""

from __future__ import annotations

from gradience.audit.adapter import audit_adapter
from gradience.audit.event import lora_audit_metrics

__all__ = ["audit_adapter", "lora_audit_metrics"]
