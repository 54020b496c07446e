"""Rules on the names of tensors: would PEFT load them onto the model that the config names?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gradience.errors import few
from gradience.rules import Observation, Unknown, cite, premise
from gradience.rules.between import SHOWN, BetweenRule, Parts, of_peft

if TYPE_CHECKING:
    from gradience.base.peft_emulation.loading import Loading, Misnaming

_WRONG: Final[dict[Misnaming, tuple[str, str]]] = {
    "no_prefix": (
        "do not begin with `base_model.model.`, which PEFT writes before each name",
        "put `base_model.model.` before each name, or save with the model's save_pretrained",
    ),
    "prefix_twice": (
        "begin with `base_model.model.` twice: a PeftModel was wrapped in another one",
        "take one `base_model.model.` away; do not call get_peft_model on a model that is a PeftModel already",
    ),
    "adapter_name": (
        "hold the adapter's name, which 0.21 takes under that name alone and PEFT up to 0.18 puts in again",
        "take `.default` (the adapter's name) out of each name, or save with the model's save_pretrained",
    ),
    "wrapper": (
        "name a wrapper of training (torch.compile, FSDP, DDP) that the model does not have where it is loaded",
        "take the wrapper's part out of each name, or save the model that is inside it",
    ),
    "live_wrapper": (
        "are names of the live model (`modules_to_save`, `original_module`), which a saved file does not have",
        "save with the model's save_pretrained, which writes the plain names",
    ),
}
_LOADER: Final = cite(
    "peft/utils/save_and_load.py:set_peft_model_state_dict@0.21.2",
    "load_state_dict with strict=False: a name that the model does not have is passed over",
)


@BetweenRule(
    "LOD401",
    severity="error",
    confidence=0.95,
    needs=(of_peft,),
    evidence=(_LOADER,),
)
def _misnamed(parts: Parts) -> Iterator[Observation]:
    """names that PEFT's loader does not look for

    tensors lack the prefix that PEFT writes, have it twice, or hold the adapter's name or that of a wrapper

    Why: PEFT passes over a name that its model does not have: the adapter, or a part of it, stays as it began, which
        is an update of zero.
    Scope: PEFT's format, by the form of the names alone; transformers 5 adds a missing prefix for some model types
    Verify: PeftModel.from_pretrained, and the sum of the absolute values of lora_B.
    Seen: https://github.com/MakazhanAlpamys/Soup/issues/335 -- names with `_orig_mod.`: all lora_B zero where loaded
    """
    total = sum(".lora_" in name for name in parts.tensors) or len(parts.tensors)
    for wrong, names in parts.misnamed.items():
        says, action = _WRONG[wrong]
        lost = "all" if len(names) >= total else f"{len(names)} of {total}"
        by_name = wrong == "adapter_name" and all(".default." in f"{name}." for name in names)
        yield Observation(
            f"PEFT {'may' if by_name else 'would'} not load {lost} of this file's tensors: their names {says} (first: "
            f"{names[0]}).",
            {"tensors": len(names), "of": total, "wrong": wrong, "first": names[0]},
            severity="warning" if by_name else None,
            action=action[0].upper() + action[1:] + ".",
        )


@premise("the names of the model's modules are known")
def _known_model(parts: Parts) -> str | None:
    return None if parts.loading is not None else parts.no_loading


def _loading(parts: Parts) -> Loading:
    if parts.loading is None:
        raise Unknown(parts.no_loading)
    return parts.loading


@BetweenRule(
    "LOD402",
    severity="error",
    confidence=0.9,
    needs=(of_peft, _known_model),
    evidence=(_LOADER,),
)
def _strange(parts: Parts) -> Observation | None:
    """modules that the model does not have

    a module of the file is none of the model's, by the base's files, or by the names of its family

    Why: PEFT passes over the tensors of a module that the model does not have.
    Scope: LoRA in PEFT's format on models of transformers; a class of one's own may name modules otherwise. Names
        that transformers 5 changes as it loads a file count as found
    Action: Load the adapter onto the class that it was trained on, or rename its modules: gradience convert --rename.
    Verify: PeftModel.from_pretrained, and the sum of the absolute values of lora_B.
    Seen: https://github.com/vllm-project/vllm/issues/48019 -- a text model's adapter did nothing on the wrapper that
        holds the model as language_model
    """
    loading = _loading(parts)
    if not loading.strange or parts.misnamed:  # the form of the names is told first: it may be all of the difference
        return None
    n, total = len(loading.strange), loading.modules
    lost = "none of them" if n == total else f"the other {total - n} alone"
    exist = (
        f"exist only {loading.change} ({loading.strange[0]} is {loading.mended[0]})"
        if loading.mended
        else f"do not exist there (first: {loading.strange[0]})"
    )
    return Observation(
        f"{n} of {total} modules {exist} in {loading.model}: PEFT loads {lost}.",
        {"strange": list(loading.strange[:SHOWN]), "modules": total, "lost": n},
        severity=None if n == total else "warning",
    )


@BetweenRule("LOD403", severity="error", confidence=0.9, needs=(of_peft, _known_model), evidence=(_LOADER,))
def _other_shape(parts: Parts) -> Observation | None:
    """factors that do not fit the weight

    the sides of lora_B A are not those of the weight of that name

    Why: PEFT refuses the file with a size mismatch. Factors of experts whose axes are swapped are refused, or read as
        another update where both sides are equal.
    Scope: plain factors beside the headers of the base's weights
    Action: Load it onto the base that it was trained on; of experts, swap the axes as the class stores them.
    Verify: Load it with PEFT: a size mismatch says the same.
    Source: peft/tuners/lora/layer.py:ParamWrapper@0.21.2 -- a parameter of three axes is (experts, out, in), or
        (experts, in, out) where the class says is_transposed
    """
    wrong = _loading(parts).other_shape
    if not wrong:
        return None
    return Observation(
        f"The factors of {len(wrong)} of {_loading(parts).modules} modules do not fit the base: {few(wrong, 2, '; ')}.",
        {"modules": len(wrong), "first": wrong[0]},
    )


@BetweenRule("LOD404", severity="warning", confidence=0.85, needs=(of_peft, _known_model))
def _missing(parts: Parts) -> Observation | None:
    """modules that the config adapts and the file lacks

    the targets match modules of the base of which the file holds no factor

    Why: What was not saved is as it began where it is loaded: a part of the training is lost, and PEFT says no more
        than a warning of missing keys.
    Scope: LoRA in PEFT's format beside the headers of the base's weights
    Action: Look at what saved it: every stage and every process has to be gathered first.
    Verify: PeftModel.from_pretrained warns of missing adapter keys.
    Source: peft/peft_model.py:PeftModel.from_pretrained@0.21.2 -- warns of missing adapter keys, and goes on
    """
    loading = _loading(parts)
    if not loading.missing or parts.misnamed or loading.strange:
        return None
    return Observation(
        f"The config's targets match {loading.modules + len(loading.missing)} modules of the base, and the file holds "
        f"{loading.modules}: {few(list(loading.missing), SHOWN)} lack.",
        {"missing": list(loading.missing[:SHOWN]), "lost": len(loading.missing), "modules": loading.modules},
    )


@premise("the config lists its targets")
def _lists_targets(parts: Parts) -> str | None:
    return "the targets are null, all-linear or of another format" if parts.untargeted is None else None


@BetweenRule("LOD405", severity="warning", confidence=0.9, needs=(of_peft, _lists_targets))
def _untargeted(parts: Parts) -> Observation | None:
    """modules outside the config's own targets

    the file holds factors of a module that target_modules, with layers_to_transform and exclude_modules, does not match

    Why: PEFT puts adapters on what the targets match and passes over all other tensors: these modules are not loaded.
    Scope: PEFT's target_modules as a list or an expression; experts, which PEFT renames itself, are left out
    Action: Add the modules to target_modules in adapter_config.json, if that is the file's own config.
    Verify: PeftModel.from_pretrained, and model.targeted_module_names.
    Source: peft/tuners/tuners_utils.py:check_target_module_exists@0.21.2 -- a module that no target matches gets no
        adapter
    """
    names = parts.untargeted or ()
    if not names or parts.misnamed:
        return None
    total = max(len(names), parts.loading.modules if parts.loading is not None else len(names))
    return Observation(
        f"target_modules does not match {few(list(names), SHOWN)}: PEFT would not load {len(names)} of {total} modules "
        "of this file.",
        {"untargeted": list(names[:SHOWN]), "lost": len(names)},
        severity="error" if len(names) == total and total > 1 else None,
    )


_IN_LAYER: Final = re.compile(r"^.*?\.?layers\.(\d+)\.")
_SD3: Final = re.compile(r"lora_unet_joint_blocks_\d")


@premise("the file is sd-scripts'")
def _of_kohya(parts: Parts) -> str | None:
    return None if parts.format == "kohya" else f"it is in {parts.format}'s format, not sd-scripts'"


@BetweenRule("LOD406", severity="warning", confidence=0.85, meant_for=_of_kohya)
def _of_no_loader(parts: Parts) -> Observation | None:
    """names of sd-scripts that diffusers does not convert

    modules are named lora_unet_joint_blocks_N_..., as sd-scripts names those of SD3

    Why: diffusers' loader of SD3 converts no name of sd-scripts: it loads no key, and says nothing.
    Scope: sd-scripts' files for Stable Diffusion 3; for SD 1, SDXL and Flux diffusers converts the names
    Action: Convert the file to diffusers' names before load_lora_weights, or use it in ComfyUI.
    Verify: pipe.get_list_adapters(), and an image with the adapter at strength 0 and 1.
    Seen: https://github.com/huggingface/diffusers/issues/9950 -- load_lora_weights of an SD3.5 file loads no key,
        without a word
    """
    names = [name for name in parts.tensors if _SD3.match(name)]
    if not names:
        return None
    return Observation(
        f"{len(names)} of {len(parts.tensors)} tensors have sd-scripts' names of SD3 (first: {names[0]}): diffusers' "
        "load_lora_weights knows none of them, and loads nothing in silence.",
        {"tensors": len(names), "first": names[0]},
    )


@premise("the file is MLX-LM's")
def _of_mlx(parts: Parts) -> str | None:
    return None if parts.format == "mlx" else f"it is in {parts.format}'s format, not MLX-LM's"


@BetweenRule("LOD407", severity="error", confidence=0.9, meant_for=_of_mlx)
def _other_keys(parts: Parts) -> Observation | None:
    """modules outside MLX-LM's own keys

    lora_parameters.keys of the config do not name modules that the file has factors of, or num_layers is under the
    layers of the file

    Why: MLX-LM puts adapters on what the keys name in the last num_layers layers, and passes over all other tensors.
    Scope: MLX-LM's adapter_config.json; without keys MLX-LM chooses
    Action: Write the paths within a layer (self_attn.q_proj) into lora_parameters.keys, and the layers into num_layers.
    Verify: Generate with and without the adapter: are the answers the same?
    Source: https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/tuner/utils.py -- load_adapters adapts by keys and
        num_layers, then load_weights with strict=False
    """
    config = parts.config or {}
    stated = config.get("lora_parameters")
    keys = stated.get("keys") if isinstance(stated, dict) else None
    modules = [name.removesuffix(".lora_a") for name in parts.tensors if name.endswith(".lora_a")]
    if isinstance(keys, list):
        lost = [name for name in modules if name not in keys and _IN_LAYER.sub("", name) not in keys]
        if lost:
            return Observation(
                f"lora_parameters.keys ({few([*map(str, keys)], SHOWN)}) name {len(modules) - len(lost)} of "
                f"{len(modules)} modules of this file: MLX-LM loads no other (first: {lost[0]}).",
                {"lost": len(lost), "modules": len(modules)},
                severity=None if len(lost) == len(modules) else "warning",
            )
    count = config.get("num_layers")
    layers = {hit[1] for name in modules if (hit := _IN_LAYER.match(name))}
    if isinstance(count, int) and not isinstance(count, bool) and 0 < count < len(layers):
        return Observation(
            f"num_layers is {count}, and the file has factors in {len(layers)} layers: MLX-LM loads those of the last "
            f"{count} alone.",
            {"num_layers": count, "layers": len(layers)},
            severity="warning",
        )
    return None


@BetweenRule("LOD408", severity="error", confidence=0.9, needs=(of_peft,))
def _other_axes(parts: Parts) -> Observation | None:
    """factors of no layer that PEFT adapts

    lora_A and lora_B of a module have another number of axes than one another, or both have three and lora_B's last
    one is not 1

    Why: PEFT makes two axes for a linear layer and for experts, three for Conv1d, four for Conv2d and five for Conv3d,
        with sides of 1 at lora_B's end: any other file is refused with a size mismatch.
    Scope: lora_A and lora_B in PEFT's format, by the header alone
    Action: Of experts that are stored one behind another, write the factors as target_parameters has them, (experts *
        r, in) and (out, r * experts); of a file of a convolution that stood for a linear layer (loralib), take the last
        axis away, and write one pair of factors for each part.
    Verify: Load it with PEFT: a size mismatch says the same.
    Seen: https://github.com/NovaSky-AI/SkyRL/pull/1857 -- adapters of experts with three axes, which nothing loads
    Seen: https://github.com/huggingface/peft/issues/1337 -- lora_B of shape (1536, 16, 1) beside lora_A of (32, 768)
    """
    wrong = []
    for name, (shape, _) in parts.tensors.items():
        module, found, rest = name.partition(".lora_A.")
        other = parts.tensors.get(f"{module}.lora_B.{rest}") if found else None
        if other is None or 0 in (*shape, *other[0]):
            continue
        sides = other[0]
        if len(sides) != len(shape) or (len(sides) == 3 and sides[2] != 1):
            wrong.append(f"{module.removeprefix('base_model.model.')} {list(shape)} and {list(sides)}")
    if not wrong:
        return None
    return Observation(
        f"The factors of {len(wrong)} modules have axes that no layer of PEFT's has: {few(wrong, 2, '; ')}.",
        {"modules": len(wrong), "first": wrong[0]},
    )


RULES: Final = (_misnamed, _strange, _other_shape, _missing, _untargeted, _of_no_loader, _other_keys, _other_axes)
