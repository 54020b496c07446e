"""An adapter in another format: plain PEFT LoRA or MLX-LM, with what that costs."""

from __future__ import annotations

from gradience.verbs.convert.adapter import convert_adapter

__all__ = ["convert_adapter"]
