"""The prompt along the way from training to serving, as each file beside a run states it.

A link is a training recipe or script, a tokenizer, a merged model, a recipe of export, Ollama's Modelfile or a server's
command. Each is read once. What a link does not state is None, or empty.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.adapters.files import CONFIG_NAME, holds_adapter
from gradience.configs.files import read_mapping
from gradience.configs.prompts import PromptForm, form_in, form_named
from gradience.configs.training import STATE_NAME
from gradience.errors import GradienceError
from gradience.io.reading import read_small
from gradience.schema import Json

LinkKind: TypeAlias = Literal["recipe", "tokenizer", "base", "merged", "export", "modelfile", "server"]

_MOST: Final = 200  # files of a folder that are looked at
_LARGEST: Final = 1 << 20  # bytes of a template or a Modelfile
_LARGEST_RECIPE: Final = 1 << 16
_RECIPES: Final = frozenset({".yaml", ".yml", ".json"})
_COMMANDS: Final = frozenset({".sh", ".bash", ".service"})
_MERGED: Final = re.compile(r"merge|fuse|export", re.IGNORECASE)
_INSTRUCTION: Final = re.compile(
    r'^\s*(FROM|TEMPLATE|SYSTEM|ADAPTER|PARAMETER\s+stop)\s+(?:"""(.*?)"""|"([^"\n]*)"|([^\n]*))',
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_SAID: Final = {  # the words of a script that are read, by the function that takes them: Unsloth's, and TRL's
    "get_chat_template": ("chat_template",),
    "train_on_responses_only": ("response_part",),
    "SFTConfig": ("chat_template_path", "eos_token", "pad_token"),
}
_COMMENT: Final = re.compile(r"^\s*#.*$", re.MULTILINE)
_CHAT_TEMPLATE: Final = re.compile(r"--chat-template(?:-file)?[= ]+([\"']?)([^\s\"'\\]+)\1")
_FILE: Final = re.compile(
    r"^[./~]|\.gguf\b|\.safetensors\b|[/\\]", re.IGNORECASE
)  # what no model of a library is called
_HUB: Final = re.compile(r"^(?:hf\.co|huggingface\.co)/|^\w[\w.-]*(?:/\w[\w.-]*)?(?::[\w.-]+)?$", re.IGNORECASE)


class PromptLink(NamedTuple):
    """What one file says of the prompt."""

    kind: LinkKind
    where: str
    """The file, in words."""
    template: str | None = None
    """The template's text; empty if it is known that there is none."""
    name: str = ""
    """The program's own name of the template."""
    program: str = ""
    model: str = ""
    """The model that a recipe names, without the folders before it."""
    eos: str | None = None
    pad: str | None = None
    bos: str | None = None
    adds_bos: bool | None = None
    """Whether the tokenizer puts BOS before a text."""
    system: str | None = None
    stops: tuple[str, ...] = ()
    answers: str = ""
    """The text behind which a script looks for answers."""
    from_file: bool = False
    """A Modelfile is made of a file, and not of a model of a library, which has a template."""

    @property
    def form(self) -> PromptForm | None:
        """The form of its turns; None if it is not known."""
        return form_named(self.name) if self.name else form_in(self.template or "")

    @property
    def says(self) -> str:
        """What it says of turns, with its place."""
        form = self.form
        what = f"template {self.name}" if self.name else "a template"
        begins = f" that begins turns with {form.begins}" if form is not None else ""
        return f"{what}{begins} ({self.where})"


def prompt_links(
    folders: Iterable[Path],
    *,
    recipes: Iterable[Path] = (),
    base: Path | None = None,
    held: Mapping[Path, Mapping[str, Json]] = MappingProxyType({}),
) -> tuple[PromptLink, ...]:
    """The links that lie in these folders, and in those below them that hold a merged model.

    Args:
        folders: where they are looked for.
        recipes: of training, which are asked for by themselves: no other recipe of training then counts.
        base: the folder of the base.
        held: the fields of files that were read.
    """
    links: dict[tuple[str, str], PromptLink] = {}
    for path in recipes:
        with suppress(GradienceError, OSError):
            if (link := _recipe(path, held)) is not None and link.kind == "recipe":
                links[link.kind, link.where] = link
    asked = bool(links)
    for folder in folders:
        for link in _links_in(folder, held):
            if not (asked and link.kind == "recipe"):
                links.setdefault((link.kind, link.where), link)
    if base is not None and base.is_dir() and (link := _tokenizer(base, "base")) is not None:
        links.setdefault((link.kind, link.where), link)
    return tuple(links.values())


def _links_in(folder: Path, held: Mapping[Path, Mapping[str, Json]]) -> Iterator[PromptLink]:
    if not os.path.isdir(folder):  # noqa: PTH112  # Path.is_dir raises on a name that is too long
        return
    # Of an adapter's folder whose weights lie elsewhere, too
    is_adapter = holds_adapter(folder) or (folder / CONFIG_NAME).is_file()
    if (own := _tokenizer(folder, "tokenizer" if is_adapter else "merged")) is not None:
        yield own
    for path in islice(sorted(folder.iterdir()), _MOST):
        link = None
        with suppress(
            GradienceError, OSError, UnicodeDecodeError, ValueError, SyntaxError, RecursionError, MemoryError
        ):
            if path.is_dir():
                link = _tokenizer(path, "merged") if _MERGED.search(path.name) and not holds_adapter(path) else None
            elif path.name.lower().partition(".")[0] == "modelfile":
                link = _modelfile(path)
            elif path.suffix in _COMMANDS or path.name.startswith(("compose", "docker-compose")):
                link = _command(path)
            elif path.suffix == ".py":
                link = _script(path)
            elif path.suffix in _RECIPES and not path.name.startswith(
                ("tokenizer", "adapter_", "special_", "config.j", STATE_NAME)
            ):
                link = _recipe(path, held)
        if link is not None:
            yield link


def _text_of(path: Path) -> str:
    return read_small(path, most=_LARGEST, what="a template").decode("utf-8-sig")


def _tokenizer(folder: Path, kind: LinkKind) -> PromptLink | None:
    """What the tokenizer in a folder says; None if there is none, or if it cannot be read."""
    path, jinja = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if not path.is_file():
        return None
    with suppress(GradienceError, OSError, UnicodeDecodeError):
        fields = read_mapping(path)
        return PromptLink(
            kind=kind,
            where=f"{path.name} in {folder.name}",
            template=_text_of(jinja) if jinja.is_file() else _template(fields.get("chat_template")),
            eos=_token(fields.get("eos_token")),
            pad=_token(fields.get("pad_token")),
            bos=_token(fields.get("bos_token")),
            adds_bos=fields["add_bos_token"] is True if "add_bos_token" in fields else None,
        )
    return None


def _template(value: Json) -> str:
    """The template's text; of several the default one."""
    if isinstance(value, list):
        named = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _token(value: Json) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _recipe(path: Path, held: Mapping[Path, Mapping[str, Json]]) -> PromptLink | None:
    """What a recipe of LLaMA-Factory, ms-swift, Axolotl or TRL says; None if it names no template and no end token."""
    fields = held[path] if path in held else read_mapping(path, most=_LARGEST_RECIPE)
    for program, key, own in (
        ("LLaMA-Factory", "template", ("model_name_or_path",)),
        ("ms-swift", "template", ("model", "model_type", "adapters")),
        ("Axolotl", "chat_template", ("base_model",)),
    ):
        name = fields.get(key)
        if isinstance(name, str) and name and any(one in fields for one in own):
            return PromptLink(
                kind=_stage(fields),
                where=path.name,
                name=name,
                program=program,
                model=next(str(fields[one]).rstrip("/").rpartition("/")[2] for one in own if one in fields),
                system=_said(fields.get("default_system", fields.get("system"))),
            )
    words = {name: value for name in _SAID["SFTConfig"] if isinstance(value := fields.get(name), str)}
    return _of_trl(path, words) if words and "model_name_or_path" in fields else None


def _of_trl(path: Path, words: Mapping[str, str]) -> PromptLink:
    """What TRL is told: a template by a file or a folder beside the recipe, or by the model that has it; end tokens."""
    named, text = Path(words.get("chat_template_path", "")), None
    if named.parts and not named.is_absolute() and ".." not in named.parts:
        file = path.parent / named
        folder = _tokenizer(file, "base")
        text = _text_of(file) if file.is_file() else folder and folder.template
    return PromptLink(
        kind="recipe",
        where=path.name,
        template=text,
        name="" if text else named.name,
        program="TRL",
        eos=words.get("eos_token"),
        pad=words.get("pad_token"),
    )


def _script(path: Path) -> PromptLink | None:
    """What a script in Python tells Unsloth or TRL in plain words of calls; None if it tells nothing."""
    text = _text_of(path)
    if not any(name in text for name in _SAID):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stranger's text, such as an invalid escape
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    words: dict[str, str] = {}
    for call in calls:
        known = _SAID.get(_called(call), ())
        for word in call.keywords:
            if word.arg in known and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
                words[str(word.arg)] = word.value.value
    trains = any(_called(call).endswith(("Trainer", "train_on_responses_only")) for call in calls)
    answers, name = words.get("response_part", ""), words.get("chat_template", "")
    if not words:
        return None
    if not name and not answers:
        return _of_trl(path, words)
    return PromptLink("recipe" if trains else "server", path.name, name=name, program="Unsloth", answers=answers)


def _called(call: ast.Call) -> str:
    """The last name of the function that is called."""
    name: str = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name


def _stage(fields: Mapping[str, Json]) -> LinkKind:
    if "export_dir" in fields:
        return "export"
    trains = ("do_train", "dataset", "datasets", "learning_rate")
    is_trained = fields.get("do_train") is not False and any(key in fields for key in trains)
    return "recipe" if is_trained else "server"


def _said(value: Json) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _modelfile(path: Path) -> PromptLink:
    found: dict[str, list[str]] = {}
    for match in _INSTRUCTION.finditer(_COMMENT.sub("", _text_of(path))):
        said = next((part for part in match.groups()[1:] if part is not None), "").strip()
        found.setdefault(" ".join(match[1].lower().split()), []).append(said)
    source = found.get("from", [""])[-1]
    return PromptLink(
        kind="modelfile",
        where=path.name,
        template=found.get("template", [""])[-1],
        program="Ollama",
        system=found.get("system", [None])[-1] or None,
        stops=tuple(stop.strip('"') for stop in found.get("parameter stop", ())),
        from_file=bool(_FILE.search(source)) and not (_HUB.match(source) and ".gguf" not in source.lower()),
    )


def _command(path: Path) -> PromptLink | None:
    """What the command of a server says; None if it names no template."""
    match = _CHAT_TEMPLATE.search(_text_of(path))
    if match is None:
        return None
    named, file = match[2], path.parent / match[2]
    where = f"--chat-template in {path.name}"
    if file.is_file():
        return PromptLink(kind="server", where=where, template=_text_of(file))
    return PromptLink(kind="server", where=where, name=Path(named).stem.replace("-", "_"), program="server")
