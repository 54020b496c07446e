"""A resized LoRA in kohya's format: one file, whose header says what a config says elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from gradience.adapters.write import PlannedTensor, write_safetensors
from gradience.errors import OutputError
from gradience.resize.plan import Plan
from gradience.schema.provenance import Provenance
from gradience.whole import whole_file

__all__ = ["PROVENANCE_KEY", "write_kohya"]

PROVENANCE_KEY: Final = "gradience_provenance"
_STALE: Final = ("sshs_model_hash", "sshs_legacy_hash")  # hashes of the old weights


def write_kohya(
    out: Path, tensors: Sequence[PlannedTensor], plan: Plan, record: Provenance, *, force: bool = False
) -> None:
    """Write the file with its metadata kept, rank and alpha in it brought up to date, and a short record added.

    Ranks that differ between modules are `Dynamic`, as sd-scripts writes them.

    Raises:
        OutputError: the name does not end in .safetensors, exists, or cannot be written.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"{out} is no name for a LoRA in kohya's format", advice="give one that ends in .safetensors")
    metadata = {key: value for key, value in plan.metadata.items() if key not in _STALE}
    one = not plan.patterns.rank_pattern and not plan.patterns.alpha_pattern
    metadata["ss_network_dim"] = str(plan.patterns.r) if one else "Dynamic"
    metadata["ss_network_alpha"] = str(plan.patterns.lora_alpha) if one else "Dynamic"
    metadata[PROVENANCE_KEY] = msgspec.json.encode(msgspec.structs.replace(record, modules=[])).decode()
    with whole_file(out, force=force) as partial:
        write_safetensors(partial, tensors, metadata=metadata)
