"""The prompt along the way from training to serving, as each file beside a run states it.

A link is a training recipe, command or script, rows, a tokenizer, a merged model, a recipe of export, Ollama's
Modelfile or a server's command. Each is read once. What a link does not state is None, or empty.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.adapters.files import CONFIG_NAME, holds_adapter
from gradience.configs.files import read_mapping
from gradience.configs.prompts import PromptForm, form_in, form_named
from gradience.configs.training import STATE_NAME
from gradience.errors import GradienceError
from gradience.io.reading import decode_json, read_small
from gradience.schema import Json

LinkKind: TypeAlias = Literal[
    "recipe", "rows", "tokenizer", "base", "merged", "export", "modelfile", "server", "applied", "adapter"
]

_MOST: Final = 200  # files of a folder that are looked at
_LARGEST: Final = 1 << 20  # bytes of a template or a Modelfile
_LARGEST_RECIPE: Final = 1 << 16
_RECIPES: Final = frozenset({".yaml", ".yml", ".json"})
_LARGEST_TOKENIZER: Final = 64 << 20
_COMMANDS: Final = frozenset({".sh", ".bash", ".service"})
_MERGED: Final = re.compile(r"merge|fuse|export", re.IGNORECASE)
_ALPACA: Final = "### Instruction:"
_ALPACAS: Final = frozenset({"alpaca", "alpaca_w_system"})  # types of Axolotl's data sets that are written in it
_INSTRUCTION: Final = re.compile(
    r'^\s*(FROM|TEMPLATE|SYSTEM|ADAPTER|PARAMETER\s+(?:stop|num_ctx))\s+(?:"""(.*?)"""|"([^"\n]*)"|([^\n]*))',
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_SAID: Final = {  # the words of a script that are read, by the function that takes them: Unsloth's, and TRL's
    "get_chat_template": ("chat_template",),
    "train_on_responses_only": ("response_part",),
    "SFTConfig": ("chat_template_path", "eos_token"),
}
_APPLYING: Final = ("PeftModel.from_pretrained", ".load_adapter", "enable_lora")
_LONGEST: Final = ("cutoff_len", "max_length", "sequence_len", "max_seq_length")  # of rows, in tokens
_ROOM: Final = re.compile(  # of vLLM, SGLang and llama-server
    r"""(?:--max-model-len|--context-length|--ctx-size|(?<!\S)-c)["',=\s\\]+(\d+(?:\.\d+)?)([kKmM]?)\b"""
)
_SLOTS: Final = re.compile(r"(?<!\S)(?:-np|--parallel)[ =]+(\d+)")
_SHARED: Final = re.compile(r"(?<!\S)(?:-kvu|--kv-unified)\b")
_APPLIES: Final = re.compile(r"--(?:enable-lora|lora(?:-modules|-paths|-scaled)?|adapter-path)\b")
_MODEL: Final = re.compile(r"""(?:\bvllm serve|(?<!python)(?<!python3)\s-m)[ \t\\\n]+([^\s"'$-][^\s"'$]*)""")
_UNITS: Final = {"": 1, "k": 1000, "K": 1 << 10, "m": 1000_000, "M": 1 << 20}  # vLLM's
_THINKS: Final = re.compile(r"enable_thinking\W{1,8}(true|false)|--reasoning-budget[ =]0\b", re.IGNORECASE)
_SYSTEM: Final = ("default_system", "system", "default_system_message")  # LLaMA-Factory, ms-swift, Axolotl
_COMMENT: Final = re.compile(r"^\s*#.*$", re.MULTILINE)
_COMMAND: Final = re.compile(r"(?<!\\)\n")  # where a command of a shell ends
_FLAG: Final = re.compile(r"""--([\w-]+)(?:(?:=|[ \t\\\n]+)(?!-)(?:"([^"]*)"|'([^']*)'|([^\s"'\\]+)))?""")
_SERVERS: Final = re.compile(
    r"\bvllm serve|vllm\.entrypoints|sglang[. ](?:launch_server|serve)|mlx_lm[. ]server|llama-server\s+-"
)
_TRAINERS: Final = re.compile(r"\b(?:swift|llamafactory-cli|axolotl|trl)\b|src/train\w*\.py")
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
    bos: str | None = None
    adds_bos: str | None = None
    """What says that the tokenizer puts BOS before a text; empty if it does not."""
    system: str | None = None
    stops: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    """The end tokens of the generation_config.json beside a tokenizer, if all are known by name."""
    template_in: str = ""
    """The file that holds the template, if it is another one."""
    hidden: str = ""
    """The template of tokenizer_config.json that such a file goes before."""
    parser: str = ""
    """The server's parser of calls of tools."""
    encodes: str = ""
    """A script's call that gives the template's text to the tokenizer, which then adds its own tokens."""
    answers: str = ""
    """The text behind which a script looks for answers."""
    from_file: bool = False
    """A Modelfile is made of a file, and not of a model of a library, which has a template."""
    thinks: bool | None = None
    """Whether the template is told to let the model think."""
    longest: int | None = None
    """The tokens of a row that training takes at most."""
    room: int | None = None
    """The tokens of a prompt and its answer that are served at most."""
    slots: int = 1
    """The prompts that share them."""
    base: str = ""
    """The model that an adapter is applied to, or was trained on."""

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
        return f"{what}{begins} ({self.template_in or self.where})"


class _TokenizerFile(msgspec.Struct):
    """What is read of tokenizer.json."""

    added_tokens: list[dict[str, Json]] = []
    post_processor: Json = None


def prompt_links(
    folders: Iterable[Path],
    *,
    recipes: Iterable[Path] = (),
    base: Path | None = None,
    held: Mapping[Path, Mapping[str, Json]] = MappingProxyType({}),
    known: Iterable[PromptLink] = (),
    trained_on: str | None = None,
) -> tuple[PromptLink, ...]:
    """The links that lie in these folders, and in those below them that hold a merged model.

    Args:
        folders: where they are looked for.
        recipes: of training, which are asked for by themselves: no other recipe of training then counts.
        base: the folder of the base.
        held: the fields of files that were read.
        known: links that lie in no such file: rows, options.
        trained_on: the name of the adapter's base: a link where another one applies the adapter.
    """
    links: dict[tuple[str, str], PromptLink] = {}
    for path in recipes:
        with suppress(GradienceError, OSError):
            if (link := _recipe(path, _fields(path, held))) is not None and link.kind == "recipe":
                links[link.kind, link.where] = link
    asked = bool(links)
    for folder in folders:
        for link in _links_in(folder, held):
            if not (asked and link.kind == "recipe"):
                links.setdefault((link.kind, link.where), link)
    of_base = _tokenizer(base, "base") if base is not None and base.is_dir() else None
    for link in (*([] if of_base is None else [of_base]), *known):
        links.setdefault((link.kind, link.where), link)
    own = [PromptLink("adapter", CONFIG_NAME, base=trained_on)] if trained_on else []
    return (*links.values(), *(own if any(link.base for link in links.values()) else ()))


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
                yield from commanded(_text_of(path), path.parent, path.name)
            elif path.suffix == ".py":
                link = _script(path)
            elif path.suffix in _RECIPES and not path.name.startswith(
                ("tokenizer", "adapter_", "special_", "config.j", STATE_NAME)
            ):
                link = _recipe(path, _fields(path, held))
        if link is not None:
            yield link


def _text_of(path: Path) -> str:
    return read_small(path, most=_LARGEST, what="a template").decode("utf-8-sig")


def _tokenizer(folder: Path, kind: LinkKind) -> PromptLink | None:
    """What the tokenizer in a folder says; None if there is none, or if it cannot be read."""
    path, jinja, place = folder / "tokenizer_config.json", folder / "chat_template.jinja", folder.absolute().name
    if not path.is_file():
        return None
    with suppress(GradienceError, OSError, UnicodeDecodeError):
        fields, whole, is_apart = read_mapping(path), _TokenizerFile(), jinja.is_file()
        with suppress(OSError, msgspec.MsgspecError):
            text = read_small(folder / "tokenizer.json", most=_LARGEST_TOKENIZER, what="a tokenizer")
            whole = decode_json(text, _TokenizerFile)
        bos, inside, adds = _token(fields.get("bos_token")), _template(fields.get("chat_template")), None
        if "add_bos_token" in fields:
            adds = "add_bos_token" if fields["add_bos_token"] is True else ""
        elif bos is not None and whole.post_processor is not None:
            adds = "tokenizer.json" if _begins_with(whole.post_processor, bos) else ""
        return PromptLink(
            kind=kind,
            where=f"{path.name} in {place}",
            template=_text_of(jinja) if is_apart else inside,
            template_in=f"{jinja.name} in {place}" if is_apart else "",
            hidden=inside if is_apart else "",
            eos=_token(fields.get("eos_token")),
            bos=bos,
            adds_bos=adds,
            ends=_ends(folder, kind, whole),
        )
    return None


def _ends(folder: Path, kind: LinkKind, tokenizer: _TokenizerFile) -> tuple[str, ...]:
    """The tokens at which generation ends by its config, else by a merged model's; none if one has no name here."""
    files = ("generation_config.json", "config.json")[: 1 + (kind == "merged")]
    path = next((folder / name for name in files if (folder / name).is_file()), None)
    ids = None if path is None else read_mapping(path).get("eos_token_id")
    names = {token.get("id"): str(token.get("content")) for token in tokenizer.added_tokens}
    found = [
        names.get(one, "") for one in (ids if isinstance(ids, list) else [ids]) if not isinstance(one, list | dict)
    ]
    return tuple(found) if all(found) else ()


def _begins_with(processor: Json, token: str) -> bool:
    """Whether the post-processor of tokenizer.json puts a token before a text."""
    match processor:
        case {"single": [{"SpecialToken": {"id": first}}, *_]}:
            return bool(first == token)
        case {"processors": [*inner]}:
            return any(_begins_with(one, token) for one in inner)
    return False


def _template(value: Json) -> str:
    """The template's text; of several the default one."""
    if isinstance(value, list):
        named = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _token(value: Json) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _fields(path: Path, held: Mapping[Path, Mapping[str, Json]]) -> Mapping[str, Json]:
    return held[path] if path in held else read_mapping(path, most=_LARGEST_RECIPE)


def _recipe(path: Path, fields: Mapping[str, Json]) -> PromptLink | None:
    """What a recipe or command of LLaMA-Factory, ms-swift, Axolotl or TRL says; None if it says nothing."""
    longest = next((value for key in _LONGEST if isinstance(value := fields.get(key), int)), None)
    for program, key, own in (
        ("LLaMA-Factory", "template", ("model_name_or_path",)),
        ("ms-swift", "template", ("model", "model_type", "adapters")),
        ("Axolotl", "chat_template", ("base_model",)),
    ):
        name, template = fields.get(key), _of_axolotl(fields) if program == "Axolotl" else None
        if (template or (isinstance(name, str) and name)) and any(one in fields for one in own):
            thinks = fields.get("enable_thinking")
            return PromptLink(
                kind=_stage(fields),
                where=path.name,
                template=template,
                name="" if template else str(name),
                program=program,
                model=next(str(fields[one]).rstrip("/").rpartition("/")[2] for one in own if one in fields),
                system=_said(next((fields[key] for key in _SYSTEM if key in fields), None)),
                thinks=str(thinks).lower() == "true" if isinstance(thinks, bool | str) else None,
                longest=longest,
                base=str(fields.get(own[0]) or "") if "adapter_name_or_path" in fields else "",
            )
    words = {name: value for name in _SAID["SFTConfig"] if isinstance(value := fields.get(name), str)}
    if "model_name_or_path" in fields and (words or longest):
        return _of_trl(path, words)._replace(longest=longest)
    return None


def _of_axolotl(fields: Mapping[str, Json]) -> str | None:
    """The template that an Axolotl recipe holds itself: Jinja, or the text of Alpaca, which all its data sets have."""
    written, data = fields.get("chat_template_jinja"), fields.get("datasets")
    if isinstance(written, str) and written.strip():
        return written
    kinds = [one.get("type") for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    return _ALPACA if kinds and all(str(kind).partition(":")[0] in _ALPACAS for kind in kinds) else None


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
    )


def _script(path: Path) -> PromptLink | None:
    """What a script in Python tells Unsloth or TRL in plain words of calls; None if it tells nothing."""
    text = _text_of(path)
    if not any(name in text for name in (*_SAID, "chat_template", "setup_chat_format", _ALPACA, *_APPLYING)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stranger's text, such as an invalid escape
        nodes = [*ast.walk(ast.parse(text))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    words: dict[str, str] = {}
    for call in calls:
        known = _SAID.get(_called(call), ())
        for word in call.keywords:
            if word.arg in known and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
                words[str(word.arg)] = word.value.value
    trains = any(_called(call).endswith(("Trainer", "train_on_responses_only")) for call in calls)
    answers, name, encodes = (
        words.get("response_part", ""),
        words.get("chat_template", ""),
        _encodes(nodes) or _given(text, nodes),
    )
    kind: LinkKind = "recipe" if trains else "server"
    if name or answers:
        return PromptLink(kind, path.name, name=name, program="Unsloth", answers=answers, encodes=encodes)
    if words:
        return _of_trl(path, words)._replace(encodes=encodes)
    own = _assigned(nodes) if trains else None
    if own or encodes:
        return PromptLink(kind, path.name, template=own, program="script", encodes=encodes)
    base = "" if trains else _applied_to(nodes)
    return PromptLink("applied", path.name, base=base) if base else None


def _applied_to(nodes: Sequence[ast.AST]) -> str:
    """The only model, in plain words, that a script applies an adapter to by PEFT or vLLM; empty if there is none."""
    held: dict[str, set[str]] = {}
    found, applies = set(), False
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                held.setdefault(name, set()).add(text)
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        function, words = ast.unparse(call.func), {word.arg: word.value for word in call.keywords}
        applies |= function.endswith(("PeftModel.from_pretrained", ".load_adapter")) or "enable_lora" in words
        if re.search(r"\bAuto(?:Peft)?Model\w*\.from_pretrained$|\bLLM$", function):
            given = words.get("pretrained_model_name_or_path", words.get("model", next(iter(call.args), None)))
            match given:
                case ast.Constant(value=str(text)):
                    found.add(text)
                case ast.Name(id=name):
                    found |= held.get(name, {""})
    return found.pop() if applies and len(found) == 1 else ""


def _assigned(nodes: Sequence[ast.AST]) -> str | None:
    """The template that a script gives a tokenizer in plain words; else text in Alpaca's form, if none is used."""
    is_chat, plain = False, None
    for node in nodes:
        match node:
            case ast.If(test=test) if "chat_template" in ast.unparse(test):
                return None  # only where the tokenizer has none
            case ast.Call() if _called(node) == "setup_chat_format":
                return "<|im_start|>"  # TRL's is ChatML
            case ast.Assign(targets=[ast.Attribute(attr="chat_template")], value=ast.Constant(value=str(text))):
                return text
            case ast.Constant(value=str(text)) if _ALPACA in text:
                plain = plain or text
            case ast.Attribute(attr="apply_chat_template" | "chat_template"):
                is_chat = True
    return None if is_chat else plain


def _encodes(nodes: Sequence[ast.AST]) -> str:
    """The first call that gives what apply_chat_template wrote to the same tokenizer, which adds its own tokens."""
    pairs = _pairs(nodes)
    others = {_place(name) for name, value in pairs if not _writers(value)}  # which may hold another text
    others |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    held = {_place(name): writers for name, value in pairs if (writers := _writers(value))}
    held = {name: writers for name, writers in held.items() if name not in others}
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "text")]
        is_told = any(word.arg in {"add_special_tokens", None} for word in call.keywords)
        writers = {name for one in given for name in held.get(_place(one), _writers(one))}
        if not is_told and ast.unparse(call.func) in writers and "processor" not in ast.unparse(call.func):
            return ast.unparse(call)
    return ""


def _given(text: str, nodes: Sequence[ast.AST]) -> str:
    """TRL's SFTTrainer, if its column of text or its formatting_func is what apply_chat_template wrote.

    Unsloth's takes a second BOS token away, and who speaks of bos_token or add_special_tokens may, too.
    """
    if any(word in text for word in ("unsloth", "bos_token", "add_special_tokens")):
        return ""
    pairs, columns, formats = _pairs(nodes), {"'text'"}, set[str]()
    written = {_place(name) for name, value in pairs if _writers(value)}
    written |= {_place(name) for name, value in pairs if _place(value) in written}
    trains = [node for node in nodes if isinstance(node, ast.Call) and _called(node) in {"SFTTrainer", "SFTConfig"}]
    for word in (word for call in trains for word in call.keywords):
        if word.arg == "dataset_text_field":
            columns = {_place(word.value)}
        elif word.arg == "formatting_func":
            formats.add(_place(word.value))
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name in formats:
            ends = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            written |= {node.name for end in ends if _writers(end) or _place(end) in written}
    return "SFTTrainer" if written & (columns | formats) and any(_called(one) == "SFTTrainer" for one in trains) else ""


def _pairs(nodes: Sequence[ast.AST]) -> list[tuple[ast.expr, ast.expr]]:
    """What is assigned, and the keys of dictionaries, each with its value."""
    pairs = [(target, node.value) for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    for node in nodes:
        if isinstance(node, ast.Dict):
            pairs += [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]
    return pairs


def _writers(value: ast.AST) -> set[str]:
    """The tokenizers whose apply_chat_template writes text in an expression."""
    return {
        ast.unparse(call.func.value)
        for call in ast.walk(value)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "apply_chat_template"
        and any(word.arg == "tokenize" and getattr(word.value, "value", None) is False for word in call.keywords)
    }


def _place(node: ast.AST) -> str:
    """The name of a variable or of a column; of a list of one, that of its element."""
    match node:
        case ast.List(elts=[only]):
            return _place(only)
        case ast.Subscript(slice=ast.Constant(value=name)) | ast.Constant(value=name):
            return repr(name)
    return ast.unparse(node)


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
    source, template = found.get("from", [""])[-1], found.get("template", [""])[-1]
    library, _, tag = source.partition(":")
    is_chat = not template and "/" not in library and not _FILE.search(source) and not re.search("text|base", tag)
    return PromptLink(
        kind="modelfile",
        where=path.name,
        template=template,
        name=library if is_chat and form_named(library) is not None else "",
        program="Ollama",
        system=found.get("system", [None])[-1] or None,
        stops=tuple(stop.strip('"') for stop in found.get("parameter stop", ())),
        from_file=bool(_FILE.search(source)) and not (_HUB.match(source) and ".gguf" not in source.lower()),
        room=next((int(room) for room in found.get("parameter num_ctx", ()) if room.isdecimal()), None),
        base=source if "adapter" in found else "",
    )


def commanded(text: str, folder: Path, where: str) -> Iterator[PromptLink]:
    """What commands say that train or serve; `where` is their file, or the options that they were given as.

    >>> next(commanded("swift sft --model org/m --dataset d --template llama3", Path(), "train.sh")).says
    'template llama3 that begins turns with <|start_header_id|> (train.sh)'
    """
    for command in _COMMAND.split(_COMMENT.sub("", text)) if where.endswith((".sh", ".bash")) else [text]:
        flags: dict[str, Json] = {
            match[1].replace("-", "_"): match[2] or match[3] or match[4] or ""
            for match in _FLAG.finditer(command)
            if "$" not in match[0]
        }
        if _TRAINERS.search(command):
            trained = _recipe(folder / where, flags)
            yield from () if trained is None else (trained,)
            continue
        named = str(flags.get("chat_template") or flags.get("chat_template_file") or "")
        thinks, room, slots = _THINKS.search(command), _ROOM.search(command), _SLOTS.search(command)
        model = flags.get("model") or flags.get("model_path") or ((by := _MODEL.search(command)) and by[1])
        said = PromptLink(
            "server",
            where,
            program="server",
            parser=str(flags.get("tool_call_parser", "")),
            thinks=None if thinks is None else (thinks[1] or "").lower() == "true",
            room=None if room is None else int(float(room[1]) * _UNITS[room[2]]),
            slots=1 if slots is None or _SHARED.search(command) else int(slots[1]),
            base=str(model or "") if _APPLIES.search(command) else "",
        )
        if named and (folder / named).is_file():
            said = said._replace(where=f"--chat-template in {where}", template=_text_of(folder / named), program="")
        elif named:
            said = said._replace(where=f"--chat-template in {where}", name=Path(named).stem.replace("-", "_"))
        if named or said.parser or _SERVERS.search(command):
            yield said
