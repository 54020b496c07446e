"""Families of models that share their modules' names: told by a model's type or name, without the model.

The families are data, in families.toml. A local folder's config.json tells the type, the width and the layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gradience.configs.settings import ALIKE, is_slip
from gradience.io.reading import decode_json, own_table, read_small

_LARGEST: Final = 1 << 20  # bytes
_QUANTISED: Final = re.compile(
    r"(?:[-.](?:unsloth|bnb|dynamic|quantized|\d-?bits?|awq|gptq|gguf|mlx|fp8|nf4|int[48]|bf16|fp16"
    r"|f16|f32|i?q\d[a-z0-9-]*|w\d+a\d+|hqq|exl2))+$"
)
_SIZE: Final = re.compile(r"(?<![a-z0-9.])(?:\d+x)?\d+(?:\.\d+)?[bm](?![a-z])")
_TUNED: Final = re.compile(r"-(instruct|chat|it|base|hf|pt)(?![a-z])")
_FOLDER: Final = re.compile(r"[./~]|.*\.(?:gguf|safetensors)$")
_FORMER_BLOCKS: Final = frozenset({"output", "intermediate"})  # of image models in transformers 4 alone
_STEMS: Final = (
    *("model", "language_model", "model.language_model", "language_model.model", "model.model", "transformer"),
    *("visual", "model.visual", "vision_tower", "vision_tower.vision_model", "model.vision_tower", "encoder"),
)
"""Where a class may keep a stack of layers, by its head and by the version of transformers."""


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Models that share their modules' names; families.toml says what the fields are."""

    name: str
    models: str
    modules: dict[str, str]
    parts: dict[str, str] = {}
    types: str = ""
    former: str = ""
    sizes: dict[str, tuple[int, int]] = {}
    no_pad_token: bool = False

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of the layers with weights, with * for a number."""
        groups = ((f"{path}." if path else "", names.split()) for path, names in self.held.items())
        return tuple(prefix + name for prefix, names in groups for name in names)

    @cached_property
    def held(self) -> dict[str, str]:
        """The names of the layers with weights by the path that holds them, with those of its parts."""
        return self.modules | {
            f"{stem}.{path}".rstrip("."): names
            for stem, part in self.parts.items()
            for path, names in _table().parts[part].items()
        }

    @cached_property
    def leaves(self) -> frozenset[str]:
        """The last components of the paths."""
        return frozenset(path.rpartition(".")[2] for path in self.paths)

    @cached_property
    def blocks(self) -> frozenset[str]:
        """The other components: modules that hold modules, or no weight."""
        parts = (part for path in self.held for part in path.split(".") if part and part != "*")
        return frozenset(parts) - self.leaves

    @cached_property
    def inner_blocks(self) -> frozenset[str]:
        """Those of them that every class of the family has, because they are in its layers."""
        inside = (path.partition("*")[2] for path in self.held if "*" in path)
        return frozenset(part for path in inside for part in path.split(".")) & self.blocks - _FORMER_BLOCKS

    @cached_property
    def stacks(self) -> frozenset[str]:
        """The names of lists of layers."""
        return frozenset(hit[1] for path in self.paths for hit in re.finditer(r"([^.]+)\.\*(?=\.)", path))

    def is_called(self, name: str) -> bool:
        """Whether a plain name, as `plain_name` returns it, is of one of its models."""
        return re.search(self.models, name) is not None

    def size(self, name: str) -> tuple[int, int] | None:
        """The width and the number of layers of the model with this plain name, or None."""
        return next((size for part, size in self.sizes.items() if re.search(part, name)), None)

    def module_names(self, layers: int) -> Iterator[str]:
        """The full names that modules have in some class and version: each below each stem."""
        for path in self.paths:
            _, star, rest = path.partition("*")
            if not star:
                yield from (path, path.rpartition(".")[2])
                continue
            stem, _, stack = path[: -len(rest) - 2].rpartition(".")
            for above in dict.fromkeys((*_tails(stem), "", *_STEMS)):
                start = f"{above}.{stack}" if above else stack
                yield from (f"{start}.{n}{rest.replace('*', '0')}" for n in range(layers))


def _tails(stem: str) -> Iterator[str]:
    """The stem, and what is left of it below each of its dots; transformers 5 has no `vision_model` in a tower."""
    parts = stem.split(".")
    for n in range(len(parts)):
        yield (below := ".".join(parts[n:]))
        yield below.replace("vision_model.", "")


class _FamilyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: dict[str, dict[str, str]]
    families: list[Family]


@cache
def _table() -> _FamilyTable:
    return own_table(__file__, "families.toml", _FamilyTable)


def families() -> list[Family]:
    """All families."""
    return _table().families


@cache
def known_modules() -> frozenset[str]:
    """The names of modules in any family."""
    return frozenset().union(*(family.leaves | set(family.former.split()) for family in families()))


def plain_name(model: str) -> str:
    """A model's name in small letters, with - for _, without what names a quantisation.

    >>> plain_name("unsloth/Qwen2.5-VL-7B-Instruct-unsloth-bnb-4bit"), plain_name("TheBloke/Mistral_7B-GPTQ")
    ('unsloth/qwen2.5-vl-7b-instruct', 'thebloke/mistral-7b')
    """
    return _QUANTISED.sub("", model.lower().replace("_", "-"))


def base_key(name: str | None) -> str:
    """What two names of one base model share: its own name, without owner and folder, `meta-`, and quantisation.

    A folder of a hub's cache counts as the model that it holds. Empty if the name does not tell.

    >>> base_key("meta-llama/Meta-Llama-3-8B"), base_key("./Llama-3-8B.Q4_K_M.gguf")
    ('llama-3-8b', 'llama-3-8b')
    """
    parts = [part for part in re.split(r"[/\\\\]", (name or "").strip()) if part]
    cached = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    return plain_name(cached[0] if cached else parts[-1] if parts else "").removeprefix("meta-")


def other_model(trained: str, served: str) -> str:
    """What tells by their names that two base models differ: their size, tuning or family; empty if nothing does.

    A name of Ollama's library is of a model that follows instructions, unless its tag says otherwise.

    >>> other_model("org/Llama-3.2-3B-Instruct", "llama3.2:1b"), other_model("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base")
    ('size', 'tuning')
    >>> other_model("org/Llama-3.2-3B-Instruct", "llama3.2:3b-instruct-q4_K_M"), other_model("./base", "org/m-8B")
    ('', '')
    >>> other_model("org/Llama-3.2-3B-Instruct", "llama3.2:3b-text"), other_model("org/Qwen3-8B", "llama3.1:8b")
    ('tuning', 'family')
    """
    ours, theirs = base_key(trained), base_key(served)
    sizes = [_SIZE.findall(one)[:1] for one in (ours, theirs)]
    kinds = [{kind for kind in _TUNED.findall(one) if kind != "hf"} for one in (ours, theirs)]
    stems = [_TUNED.sub("", one) for one in (ours, theirs)]
    library, _, tag = served.partition(":")
    of_library = "/" not in library and not _FOLDER.match(served)
    if all(sizes) and sizes[0] != sizes[1]:
        return "size"
    if stems[0] == stems[1]:
        return "tuning" if kinds[0] != kinds[1] else ""
    if of_library and re.search(r"text|base", tag) and kinds[0] - {"base", "pt"}:
        return "tuning"
    if not all(sizes) or any(_FOLDER.match(one) for one in (trained, served)):
        return ""
    plain, library = (re.sub(r"\W", "", one) for one in (ours, library.lower()))
    is_same = library in plain if of_library else any(a.startswith(b) for a, b in (stems, stems[::-1]))
    return "" if is_same else "family"


def family_of(model: str | None, model_type: str | None = None) -> Family | None:
    """The family of a model by its type, else by its name; None if it is in none.

    >>> family_of("microsoft/phi-2").name, family_of("a-model"), family_of("Llama-x", "gpt2").name
    ('Phi-2', None, 'GPT-2')
    """
    name, kind = plain_name(model or ""), (model_type or "").replace("_", "-")
    if kind:
        # A stated type decides: a name may say whose answers a model was distilled from (DeepSeek-R1-Distill-Qwen).
        return next((family for family in families() if kind in family.types.replace("_", "-").split()), None)
    return next((family for family in families() if name and family.is_called(name)), None)


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that a name misspells by a letter, a separator or a capital; None if it misspells none.

    >>> meant("q_porj", ["q_proj", "k_proj"]), meant("qproj", ["q_proj"]), meant("query", ["q_proj"])
    ('q_proj', 'q_proj', None)
    """
    last = name.rpartition(".")[2]
    names = sorted(known)
    same = next((each for each in names if each.lower() == last.lower()), None)
    alike = get_close_matches(last, names, n=5, cutoff=ALIKE - 0.1)  # short names: one letter of five is a fifth
    return same or next((each for each in alike if is_slip(last, each)), None)


class Dimensions(NamedTuple):
    """The facts of a model that its config.json tells: its type, width, number of layers, and quantisation."""

    model_type: str
    width: int | None = None
    layers: int | None = None
    quant_method: str = ""
    tied: bool = False
    """Whether it says that the head is the embedding."""


class _Sizes(msgspec.Struct):
    tie_word_embeddings: bool | None = None
    hidden_size: int | None = None
    d_model: int | None = None
    n_embd: int | None = None
    dim: int | None = None
    num_hidden_layers: int | None = None
    n_layer: int | None = None
    n_layers: int | None = None
    num_layers: int | None = None


class _QuantizationConfig(msgspec.Struct):
    quant_method: str = ""


class _ModelConfig(_Sizes):
    model_type: str = ""
    quantization_config: _QuantizationConfig | None = None
    text_config: _Sizes | None = None


def read_dimensions(folder: Path) -> Dimensions | None:
    """What the config.json of a folder tells of its model; None without one that can be read."""
    try:
        whole = decode_json(read_small(folder / "config.json", most=_LARGEST, what="a model's config"), _ModelConfig)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    text = whole.text_config or whole
    widths = (text.hidden_size, text.d_model, text.n_embd, text.dim)
    layers = (text.num_hidden_layers, text.n_layer, text.n_layers, text.num_layers)
    method = whole.quantization_config.quant_method if whole.quantization_config else ""
    tied = True in {whole.tie_word_embeddings, text.tie_word_embeddings}
    dimensions = Dimensions(
        whole.model_type, next(filter(None, widths), None), next(filter(None, layers), None), method, tied
    )
    return dimensions if dimensions.model_type else None
