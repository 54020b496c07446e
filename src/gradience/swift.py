"""The flight recorder in ms-swift 4, which loads this file as a plugin and the callback by its name.

swift sft ... --callbacks gradience --external_plugins "$(python -m gradience.swift)"
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gradience.hf.callback import GradienceCallback


class SwiftCallback(GradienceCallback):
    """The callback as ms-swift creates it; the log is `<output_dir>/run.jsonl`. Subclass it to set other options."""

    def __init__(self, args: Any, trainer: Any, **options: Any) -> None:
        super().__init__(**options)
        template = getattr(trainer, "template", None)
        self.take_program(
            dataset=next(iter(getattr(args, "dataset", None) or ()), None),
            template=getattr(getattr(template, "template_meta", None), "template_type", None),
            max_length=getattr(template, "max_length", None),
        )


if __name__ == "__main__":
    sys.stdout.write(f"{__file__}\n")
else:
    # ms-swift has put this folder first on the path, where `data`, `models` and `swift` would be ours
    sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).parent]
    from swift.callbacks.mapping import callbacks_map

    callbacks_map["gradience"] = SwiftCallback
