"""The flight recorder in Axolotl, whose users write settings and no code.

plugins:
  - gradience.axolotl.GradiencePlugin
gradience:            # options of `gradience.GradienceCallback`; may be left out
  stop_on: [NUM101]
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from gradience.hf.callback import GradienceCallback


class GradienceArgs(BaseModel):
    """The key that the plugin adds to Axolotl's settings."""

    gradience: dict[str, Any] | None = None


class GradiencePlugin(BasePlugin):  # type: ignore[misc]  # Axolotl is not installed where this is checked
    """Adds the recorder to the Trainer that Axolotl makes; the log is `<output_dir>/run.jsonl`."""

    def get_input_args(self) -> str:
        """Return the name of the class with the plugin's settings, for Axolotl."""
        return "gradience.axolotl.GradienceArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:  # noqa: ARG002  # Axolotl's signature
        """Return the recorder, with the options under `gradience`.

        Raises:
            TypeError: an option is not one of `GradienceCallback`.
            ValueError: an option is out of its range.
        """
        recorder = GradienceCallback(**dict(cfg.gradience or {}))
        first = (getattr(cfg, "datasets", None) or [{}])[0]
        recorder.take_program(
            dataset=first.get("path"),
            template=first.get("chat_template") or getattr(cfg, "chat_template", None),
            max_length=getattr(cfg, "sequence_len", None),
        )
        return [recorder]
