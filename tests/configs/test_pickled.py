"""A pickle of training arguments is read by its opcodes: no file can make the reader import, call or allocate much."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience.configs.document import read_document
from gradience.configs.pickled import MAX_OPCODES, MAX_PICKLE, MAX_VALUES, Name, Record, Walk, pickled_in
from gradience.configs.training import read_training, read_training_dir
from gradience.errors import ConfigError

SECRET = "hf_doNotPrintMe"  # noqa: S105  # not one
CANARY = "canary"
SETTINGS = {"learning_rate": 1e-4, "max_steps": 30, "hub_token": SECRET}

_WATCHED = {
    *("import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
}
_events: list[str] = []
_watching = False


def read_pickled(path: Path):
    """The settings in a pickle."""
    return pickled_in(path, path.read_bytes())


def _watch(event: str, _: tuple[object, ...]) -> None:
    if _watching and event in _WATCHED:
        _events.append(event)


sys.addaudithook(_watch)  # one for the process: it cannot be taken away, so that it listens only when asked to


class Inert:
    """What reading does besides: nothing, which is asserted on leaving."""

    def __enter__(self) -> None:
        """Begin to listen."""
        global _watching  # noqa: PLW0603  # an audit hook has no other way to be told
        _events.clear()
        self.modules = set(sys.modules)
        _watching = True

    def __exit__(self, *_: object) -> None:
        """Nothing was imported, compiled or started."""
        global _watching  # noqa: PLW0603  # as above
        _watching = False
        assert _events == []
        assert set(sys.modules) == self.modules


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, with what a benign file needs imported; no canary is there afterwards."""
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        read_pickled(pickled(tmp_path, Namespace(**SETTINGS), protocol))
    read_pickled(archived(tmp_path, pickle.dumps(Namespace(**SETTINGS))))
    yield
    assert not (tmp_path / CANARY).exists()


def written(folder: Path, data: bytes) -> Path:
    """Return a training_args.bin of these bytes."""
    path = folder / "training_args.bin"
    path.write_bytes(data)
    return path


def pickled(folder: Path, value: object, protocol: int = 2) -> Path:
    """Return a training_args.bin that is a bare pickle."""
    return written(folder, pickle.dumps(value, protocol))


def archived(folder: Path, data: bytes, name: str = "args/data.pkl", how: int = zipfile.ZIP_STORED) -> Path:
    """Return a training_args.bin that is an archive with one entry."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(name, data)
    return written(folder, file.getvalue())


class Reduced:
    """Unpickled, it calls."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:  # whatever it takes
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle as the call."""
        return self.call


def protocol_zero(module: str, name: str, argument: str) -> bytes:
    """Return the shortest attack: `name(argument)`."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


TOUCH = f"touch {CANARY}"
WRITE = f"open('{CANARY}', 'w')"

ATTACKS: dict[str, bytes] = {
    "os.system": protocol_zero("os", "system", TOUCH),
    "posix.system": protocol_zero("posix", "system", TOUCH),
    "eval": protocol_zero("builtins", "eval", WRITE),
    "exec of Python 2": protocol_zero("__builtin__", "exec", WRITE),
    "import": protocol_zero("builtins", "__import__", "antigravity"),
    "a module only": b"cantigravity\nfly\n.",
    "runpy": protocol_zero("runpy", "run_path", "x.py"),
    "torch.load": protocol_zero("torch.serialization", "load", "x"),
    "transformers' own loader": protocol_zero("transformers", "pipeline", "x"),
    "a class of transformers that is none of arguments": protocol_zero("transformers", "AutoModel", "x"),
    "INST": f"(S'{TOUCH}'\nios\nsystem\n.".encode(),
    "OBJ": f"(cos\nsystem\nS'{TOUCH}'\no.".encode(),
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(TOUCH)]) + TOUCH.encode() + b"\x85R.",
    "nested in a setting": pickle.dumps({"learning_rate": 1e-4, "callback": Reduced(os.system, TOUCH)}),
    "nested in a list of lists": pickle.dumps([[[Reduced(os.system, TOUCH)]]]),
    "behind a benign pickle": pickle.dumps(0x1950A86A20F9469CFC6C, 2) * 3 + protocol_zero("os", "system", TOUCH),
    "getattr of a class": pickle.dumps(Reduced(getattr, str, "format"), 2),
    "a known class that is called": b"cbuiltins\nobject\n)R.",
    "build on a class": b"cargparse\nNamespace\n}S'learning_rate'\nF1.0\nsb.",
    "persistent id": b"Pos.system\n.",
    "persistent id, binary": b"\x8c\x01xQ.",
    "extension 1": b"\x82\x01.",
    "extension 2": b"\x83\x01\x00.",
    "extension 4": b"\x84\x01\x00\x00\x00.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "read-only buffer": b"\x80\x05\x8c\x01x\x98.",
    "cut off": pickle.dumps(Namespace(**SETTINGS))[:-20],
    "no opcode": b"\xff\xff\xff",
    "empty stack": b".",
    "a reference to nothing": b"h\x05.",
    "a group without a mark": b"(0t.",
    "a text longer than the file": b"X\xff\xff\xff\x7fabc.",
    "a long longer than the file": b"\x8b\xff\xff\xff\x7f\x01.",
    "bytes of 2^62": b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "thousands of digits": b"L" + b"9" * 5000 + b"L\n.",
    "a key that is a list": b"}]I1\ns.",
    "a key that is a huge number": b"}" + pickle.dumps(1 << 5000)[2:-1] + b"I1\ns.",
    "too many opcodes": b"N0" * MAX_OPCODES + b"N.",
    "too deep": b"]" * 1000 + b"a" * 999 + b".",
    "a ring": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "doubled forty times": b"\x80\x02](K\x01K\x01e" + b"q\x00](h\x00h\x00e" * 40 + b".",
    "more values than arguments have": pickle.dumps({"x": [[1]] * MAX_VALUES}),
    "not arguments, a list": pickle.dumps([1e-4]),
    "not arguments, a text": pickle.dumps("learning_rate"),
    "larger than any arguments": pickle.dumps({"learning_rate": 1e-4, "x": "y" * MAX_PICKLE}),
}


@every("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_hostile_pickle_is_refused_in_words_and_runs_nothing(tmp_path: Path, data: bytes) -> None:
    magic = b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {}))
    for path in (written(tmp_path, data), archived(tmp_path, data), written(tmp_path, magic + data)):
        with Inert(), pytest.raises(ConfigError) as caught:
            read_training(path)
        assert "training_args.bin: " in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(path)) + 250


@every(
    ("data", "words"),
    [
        (ATTACKS["os.system"], "names os.system"),
        (ATTACKS["a module only"], "names antigravity.fly"),
        (ATTACKS["a class of transformers that is none of arguments"], "names transformers.AutoModel"),
        (ATTACKS["extension 2"], "opcode EXT2"),
        (ATTACKS["persistent id"], "opcode PERSID"),
        (ATTACKS["cut off"], "damaged or cut off"),
        (ATTACKS["larger than any arguments"], "a pickle of more than 1024 KiB"),
        (ATTACKS["too many opcodes"], "more than 100000 opcodes"),
        (ATTACKS["doubled forty times"], "more than 20000 values"),
        (b"\x8c\x04\xe2\x98\x83\x1b\x8c\x01x\x93.", r"names \\u2603\\x1b\.x"),
    ],
)
def test_refusal_names_the_class_or_opcode(tmp_path: Path, data: bytes, words: str) -> None:
    """And shows no control character of the file."""
    with pytest.raises(ConfigError, match=words):
        read_training(written(tmp_path, data))


def test_state_is_taken_down_and_no_setstate_is_called(tmp_path: Path) -> None:
    """BUILD calls `__setstate__` in a real unpickler; here the class is a name, even one that exists."""
    Namespace.__setstate__ = lambda *_: Path(CANARY).touch()  # type: ignore[attr-defined]
    try:
        with Inert():
            found = read_pickled(pickled(tmp_path, Namespace(**SETTINGS)))
    finally:
        del Namespace.__setstate__  # type: ignore[attr-defined]
    assert found == SETTINGS


def test_memo_bomb_costs_no_memory(tmp_path: Path) -> None:
    """2^40 values from 400 bytes: the tree is counted, not built."""
    path = written(tmp_path, ATTACKS["doubled forty times"])
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            read_training(path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def _bomb(name: str = "args/data.pkl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as entry:
        for _ in range(64):
            entry.write(b"N0" * 524_288)
    return file.getvalue()


def _twice() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for folder in ("a", "b"):
            archive.writestr(f"{folder}/data.pkl", pickle.dumps(SETTINGS))
    return file.getvalue()


def _named(name: str, how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(name, pickle.dumps(SETTINGS))
    return file.getvalue()


def _lying() -> bytes:
    """Say in the directory that the entry has 10 bytes."""
    data, size = _named("args/data.pkl"), struct.pack("<I", len(pickle.dumps(SETTINGS)))
    return data.replace(size, struct.pack("<I", 10))


def _crowded() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("args/data.pkl", pickle.dumps(SETTINGS))
        for number in range(1000):
            archive.writestr(f"args/data/{number}", b"")
    return file.getvalue()


ARCHIVES = {
    "bomb": _bomb(),
    "two pickles": _twice(),
    "absolute path": _named("/etc/data.pkl"),
    "path upwards": _named("../data.pkl"),
    "no pickle": _named("args/other.pkl"),
    "bzip2": _named("args/data.pkl", zipfile.ZIP_BZIP2),
    "cut": _named("args/data.pkl")[:-30],
    "lies": _lying(),
    "encrypted": _named("args/data.pkl").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    ),
    "only a head": b"PK\x03\x04",
    "many entries": _crowded(),
}


@every("name", ARCHIVES)
def test_hostile_archive_is_refused_and_nothing_is_unpacked(tmp_path: Path, name: str) -> None:
    """Names are compared and never used as paths; sizes are bounded whatever the archive says."""
    path = written(tmp_path, ARCHIVES[name])
    tracemalloc.start()
    try:
        with Inert(), pytest.raises(ConfigError, match=r"training_args\.bin: not read: "):
            read_training(path)
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["training_args.bin"]


@every("protocol", range(6))
def test_arguments_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    """A Namespace, as scripts without a Trainer saved it; the token is named and not kept."""
    arguments = Namespace(**SETTINGS, per_gpu_train_batch_size=8, warmup_steps=0)
    with Inert():
        layer = read_training(pickled(tmp_path, arguments, protocol))
    config = layer.config
    assert (config.optimizer.lr, config.training.max_steps, config.training.batch_size) == (1e-4, 30, 8)
    assert layer.secret_keys == ("hub_token",)
    assert SECRET not in repr(layer)
    assert [(item.role, Path(item.path).name) for item in layer.sources] == [("training", "training_args.bin")]


def test_member_of_an_enum_by_name_is_its_value() -> None:
    """Python 3.11.0 pickled `SaveStrategy.STEPS` as `getattr(SaveStrategy, 'STEPS')`."""
    enum = "ctransformers.trainer_utils\nSaveStrategy\n"
    path = Path("a.bin")
    path.write_text(f"(S'save_strategy'\ncbuiltins\ngetattr\n({enum}S'STEPS'\ntRd.")
    assert read_pickled(path) == {"save_strategy": "steps"}


def test_processes_and_their_gpus_are_counted(tmp_path: Path) -> None:
    """JSON arguments do not say how many there were; the pickled object does."""
    state = {"num_processes": 2}
    for gpus, processes in ((1, 2), (0, 2), (4, 8)):
        path = pickled(tmp_path, Namespace(learning_rate=1e-4, distributed_state=state, _n_gpu=gpus))
        assert read_training(path).config.training.world_size == processes
    assert read_training(pickled(tmp_path, Namespace(learning_rate=1e-4))).config.training.world_size is None


def test_json_goes_before_the_pickle(tmp_path: Path) -> None:
    pickled(tmp_path, Namespace(learning_rate=1e-4))
    assert read_training_dir(tmp_path).config.optimizer.lr == 1e-4
    (tmp_path / "training_args.json").write_text('{"learning_rate": 2e-4}')
    assert read_training_dir(tmp_path).config.optimizer.lr == 2e-4


def test_weights_given_as_a_configuration_are_refused(tmp_path: Path) -> None:
    """An adapter_model.bin is a pickle too."""
    path = archived(tmp_path, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.")
    with pytest.raises(ConfigError, match=r"names torch\._utils\._rebuild_tensor_v2"):
        read_document(path)


def test_a_state_may_be_of_slots_alone():
    walk = Walk(b"")
    record = Record(Name("argparse Namespace"))
    walk.stack += [record, (None, {"a": 1})]
    walk.build()
    assert (record.state, walk.stack) == ({"a": 1}, [record])
