"""Data, tokenizers and templates of strangers: nothing of theirs runs, hangs, or ends the command."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made import QWEN, ask, rows, say, write
from pyarrow import ipc, parquet
from tables import every

from gradience.cli.main import main
from gradience.data.encoder import Chat, Encoder
from gradience.data.rows import RowSource, UnusableRow
from gradience.errors import ConfigError
from gradience.io.confined import MEMORY, Limits

TALK = [ask("hello there"), say("hi")]


def changed(tok: Path, to: Path, change: Any) -> Path:
    """A copy of the tokenizer with its tokenizer.json changed."""
    shutil.copytree(tok, to)
    document = json.loads((to / "tokenizer.json").read_text())
    change(document)
    (to / "tokenizer.json").write_text(json.dumps(document))
    return to


def test_code_beside_a_tokenizer_is_not_run_even_if_somebody_says_yes(
    tmp_path: Path, tok: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(tok, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass T: pass\n")
    data = write(tmp_path / "train.jsonl", rows("messages", 3))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\nyes\n" * 1000))
    assert main(["check", "--data", str(data), "--tokenizer", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "it needs Python code of its own (auto_map), which gradience never runs" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@every(
    ("template", "says"),
    [
        ("{{ 1/0 }}", "division by zero"),
        ("{{ 'a' * 10**11 }}", "MemoryError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 10**9999 }}", "4300 digits"),
        ("{% for", "the chat template cannot render it"),
    ],
)
def test_a_template_that_fails_is_a_fault_of_its_row(tmp_path: Path, tok: Path, template: str, says: str) -> None:
    (tmp_path / "chat.jinja").write_text(template)
    (found,) = Encoder(tok, tmp_path / "chat.jinja").chats([Chat(TALK)])
    assert isinstance(found, str)
    assert found.startswith("the chat template cannot render it: ")
    assert says in found


def test_a_template_that_loops_ends_with_its_time(tmp_path: Path, tok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits.__new__, "__defaults__", (MEMORY, 1.0))
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(loop)
    encoder = Encoder(tok, tmp_path / "chat.jinja")
    with pytest.raises(ConfigError, match=r"the chat template of .* takes more than 1 s of processor time"):
        encoder.chats([Chat(TALK)])


@every(
    "change",
    [
        lambda it: it["model"].update(merges=[["a", "zzzz"]]),
        lambda it: it["model"].update(vocab={"a": 0, "b": 0, "c": 5_000_000_000}),
        lambda it: it.update(padding={"strategy": {"Fixed": 4_000_000_000}}),
        lambda it: it.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA////"}),
        lambda it: it.update(model=None),
    ],
    ids=["merges", "vocab", "padding", "charsmap", "model"],
)
def test_a_tokenizer_that_panics_is_an_error_in_words(tmp_path: Path, tok: Path, change: Any, capfd: Any) -> None:
    with suppress(ConfigError):  # some versions of tokenizers take it
        Encoder(changed(tok, tmp_path / "odd", change)).texts(["hello"])
    assert capfd.readouterr().err == ""


@every("name", ["x.parquet", "x.arrow", "x.jsonl", "x.json", "x.csv", "x.tsv"])
def test_a_pipe_is_no_data_set_whatever_its_name(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="a pipe, not a regular file"):
        RowSource(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="a device, not a regular file"):
        RowSource(tmp_path / name)


@every(
    "state",
    [{"_data_files": [{"filename": ["x"]}, {}, 1]}, {"_data_files": {}}, {"splits": ["."]}, {"splits": [".."]}, {}],
)
def test_a_damaged_state_of_a_saved_data_set_is_an_error(tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "rows.jsonl"}]}')  # of another set
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ("dataset_dict.json" if "splits" in state else "state.json")).write_text(json.dumps(state))
    with pytest.raises(ConfigError):
        RowSource(tmp_path / "set")


def test_a_file_that_a_state_names_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "rows.jsonl"}] * 9}))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    assert RowSource(tmp_path).count == 1


@every("name", ["x.jsonl", "x.csv", "x.json"])
@pytest.mark.parametrize("wanted", [None, {2, 3}])
def test_a_file_that_loses_rows_while_it_is_read_is_an_error(
    tmp_path: Path, name: str, wanted: set[int] | None
) -> None:
    texts = {"x.jsonl": '{"a": 1}\n' * 3, "x.csv": "a\n" + "1\n" * 3, "x.json": '[{"a": 1}, {"a": 1}, {"a": 1}]'}
    shorter = {"x.jsonl": '{"a": 1}\n', "x.csv": "a\n1\n", "x.json": '[{"a": 1}]'}
    (tmp_path / name).write_text(texts[name])
    source = RowSource(tmp_path / name)
    assert len(list(source.rows(wanted))) == (3 if wanted is None else 2)
    (tmp_path / name).write_text(shorter[name])
    with pytest.raises(ConfigError, match="it changed while it was read"):
        list(source.rows(wanted))


def arrow(path: Path) -> bytearray:
    table = pa.table({"text": ["hello world"] * 50, "ids": [[1, 2, 3]] * 50})
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    return bytearray(path.read_bytes())


@every("offset", [0x7FFFFFF0, -5_000_000, 5])
def test_an_arrow_file_with_wrong_offsets_is_refused(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "x.arrow"
    raw = arrow(path)
    place = raw.find(struct.pack("<iii", 0, 11, 22)) + 8
    raw[place : place + 4] = struct.pack("<i", offset)
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="Offset invariant failure"):
        list(RowSource(path).rows())


def test_an_arrow_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow(path)[:-600])
    with pytest.raises(ConfigError):
        list(RowSource(path).rows())


@pytest.mark.slow  # writes 400 MB of nulls
def test_a_parquet_file_that_grows_beyond_the_limit_is_refused_and_takes_no_memory_here(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    schema = pa.schema({"text": pa.string(), "more": pa.list_(pa.null())})
    more = pa.ListArray.from_arrays([0, 100_000_000, 100_000_000], pa.nulls(100_000_000))
    table = pa.table([pa.array(["a", "b"]), more], schema=schema)
    parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(ConfigError):
        list(RowSource(path).rows())


def test_large_rows_of_a_parquet_file_are_faults_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": ["a", "b" * (65 << 20), "c"], "n": [[1], [2], [0] * 4_000_001]}), path)
    first, second, third = RowSource(path).rows()
    assert first == (1, {"text": "a", "n": [1]})
    assert second == UnusableRow(2, "a row of more than 64 MiB")
    assert third == UnusableRow(3, "a row of more than 4,000,000 values")


def test_long_lines_of_a_csv_are_faults_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradience.data.rows.MAX_LINE", 1000)
    monkeypatch.setattr("gradience.data.rows._MAX_FIELDS", 10)
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\n" + b"a" * 1500 + b",1\nb,2\n" + b"," * 11 + b"\n" + b'"c\nd",3\n')
    found = list(RowSource(path).rows())
    assert found == [
        UnusableRow(1, "a line of more than 0 MiB or 10 fields"),
        (2, {"text": "b", "label": "2"}),
        UnusableRow(3, "a line of more than 0 MiB or 10 fields"),
        (4, {"text": "c\nd", "label": "3"}),
    ]
    path.write_bytes(b"," * 2000 + b"\n1,2\n")
    with pytest.raises(ConfigError, match="a header of more than"):
        RowSource(path)


def test_a_line_that_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradience.data.rows.MAX_LINE", 1000)
    monkeypatch.setattr("gradience.io.reading.MAX_SKIPPED", 5000)
    for name in ("x.jsonl", "x.csv"):
        (tmp_path / name).write_bytes(b"h\n" + b"a" * 4000 + b"\nb\n")
        RowSource(tmp_path / name)
        (tmp_path / name).write_bytes(b"h\n" + b"a" * 9000 + b"\nb\n")
        with pytest.raises(ConfigError, match="a line of more than"):
            RowSource(tmp_path / name)


def test_more_values_than_the_limit_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gradience.data.rows", "gradience.io.reading"):
        monkeypatch.setattr(f"{module}.MAX_VALUES", 20)
    (tmp_path / "x.json").write_text(json.dumps([{"a": ",[{" * 30}] * 9))  # in a text they are no values
    assert RowSource(tmp_path / "x.json").count == 9
    (tmp_path / "x.json").write_text(json.dumps([{"a": 1}] * 11))
    with pytest.raises(ConfigError, match="more than 20 values in one JSON document; give JSONL"):
        RowSource(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_text('{"a": [' + "[]," * 20 + "[]]}\n" + '{"a": [1, 2]}\n')
    assert list(RowSource(tmp_path / "x.jsonl").rows()) == [
        UnusableRow(1, "a line of more than 20 values"),
        (2, {"a": [1, 2]}),
    ]


@every(
    ("row", "says"),
    [
        ({"input_ids": [10**20, 1]}, "a number beyond 2^31"),
        ({"input_ids": [1, 2], "labels": [1, -(2**40)]}, "a number beyond 2^31"),
        ({"text": "a", "label": 10**400}, "longer than a label is"),
        ({"text": "a", "label": "9" * 5000}, "longer than a label is"),
    ],
)
def test_numbers_of_no_size_that_a_data_set_has_are_faults_of_their_rows(row: dict[str, Any], says: str) -> None:
    from gradience.data import Unusable
    from gradience.data.formats import canonical, recognise

    with pytest.raises(Unusable, match=says.replace("^", r"\^")):
        canonical(row, recognise(row), chat=False, trl=True)


def test_deep_tools_and_odd_arguments_of_a_row_are_faults_of_the_row(tok: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(QWEN)
    encoder = Encoder(tok, tmp_path / "chat.jinja")
    odd = [{"tools": "[" * 3000 + "]" * 3000}, {"chat_template_kwargs": {"chat_template": "x"}}, {"tools": "{"}, {}]
    *faults, fine = encoder.chats([Chat(TALK, passed=passed) for passed in odd])
    assert all(isinstance(one, str) and one.startswith("the chat template cannot render it") for one in faults)
    assert not isinstance(fine, str)
