"""What transformers and PEFT refuse to train beside a base whose weights are stored in codes (QNT001)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.rules import Observation, Unknown, cite
from gradience.rules.config.facts import AN_ADAPTER, LORA, OPEN_OR_WEIGHED, Facts, LoraRule

QUANTIZERS = cite(
    "transformers 5.24, quantizers/ (read)", "is_trainable of each; the Trainer refuses where it is false"
)
LAYERS = cite("PEFT 0.21.2, tuners/lora/ (read)", "layers of GPTQ, AWQ, AQLM, EETQ and INC have no merge, or refuse it")

_UNTRAINED: Final = frozenset(
    {"mxfp4", "nvfp4", "fbgemm_fp8", "auto-round", "higgs", "metal", "quark", "spqr", "vptq"}  # of quantization_config
)
_DEQUANTISED: Final = {"mxfp4": "Mxfp4Config(dequantize=True)"}  # what loads it in 16 bits instead
_WITHOUT_DORA: Final = frozenset({"gptq", "awq", "aqlm", "eetq"})


def _method(facts: Facts) -> str:
    if facts.around.model is None:
        raise Unknown("the config.json of the base is not at hand (--base)")
    return facts.around.model.quant_method


@LoraRule(
    "QNT001",
    severity="warning",
    confidence=0.9,
    needs=(LORA, AN_ADAPTER, OPEN_OR_WEIGHED),
    settings=("use_dora", "model_name"),
    evidence=(QUANTIZERS, LAYERS),
)
def _not_trained(facts: Facts) -> Iterator[Observation]:
    """cannot be trained beside this base

    the base's config.json names a quantisation that transformers does not train beside, or beside which PEFT refuses
    DoRA, and use_dora is set; info where the base can be dequantised on loading

    Why: The run ends with an error once the base has been loaded.
    Scope: PEFT's LoRA with transformers; a base whose config.json is at hand
    Action: train beside the model it was made from, in 16 bits or in bitsandbytes' 4 bits
    Verify: load the base, attach the adapter and take one step
    Source: transformers/trainer_utils.py:validate_quantization_for_training@5.24.0 -- raises where the quantizer is
        not trainable
    """
    method = _method(facts)
    if method in _UNTRAINED:
        loaded = _DEQUANTISED.get(method)
        yield Observation(
            f"transformers refuses to train beside a base in {method}"
            + (", unless it is dequantised" if loaded else ""),
            {"quant_method": method},
            severity="info" if loaded else None,  # how it will be loaded, no file tells
            action=loaded and f"load it with quantization_config={loaded}",
        )
    if method in _WITHOUT_DORA and facts.config.lora.use_dora:
        yield Observation(
            f"PEFT refuses use_dora beside a base in {method}", {"quant_method": method}, action="set use_dora=False"
        )


RULES: Final = (_not_trained,)
