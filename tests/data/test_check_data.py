"""`gradience check --data`: exit codes, one line for bad input, files of every kind, samples, and the configuration."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from made import QWEN_PLAIN, ask, rows, saved, say, write

import gradience
from gradience.cli.main import main
from gradience.errors import ConfigError
from gradience.schema.reports import CheckReport


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", rows("messages"))


def ids(report: CheckReport) -> set[str]:
    return {finding.id for finding in report.findings}


def test_the_report_of_a_person_names_format_tokens_and_limit(train: Path, tok: Path, capsys: Any) -> None:
    assert main(["check", "--data", str(train), "--tokenizer", str(tok), "--max-length", "40"]) == 0
    out = capsys.readouterr().out
    for piece in ("40 (messages, for SFTTrainer)", "Limit:      40 tokens", "limit 40", "[WARNING] DAT305", "Epoch:"):
        assert piece in out
    assert "(the trainer's default)" in next(line for line in out.splitlines() if line.startswith("  Loss:"))
    assert "river" not in out


def test_json_follows_the_schema_and_holds_no_text_of_rows(train: Path, tok: Path, capsys: Any) -> None:
    assert main(["check", "--data", str(train), "--tokenizer", str(tok), "--set", "samples=9", "--json"]) == 0
    out = capsys.readouterr().out
    jsonschema.validate(json.loads(out), msgspec.json.schema(CheckReport))
    data = json.loads(out)["data"]
    assert (data["rows"], data["rows_read"]) == (40, 9)
    assert "river" not in out


def test_text_of_rows_is_shown_on_request_only(tmp_path: Path, tok: Path, capsys: Any) -> None:
    some = [{"messages": [ask("a secret question"), say(" ")]}, *rows("messages", 5)]
    path = write(tmp_path / "train.jsonl", some)
    main(["check", "--data", str(path), "--tokenizer", str(tok)])
    assert "secret question" not in capsys.readouterr().out
    main(["check", "--data", str(path), "--tokenizer", str(tok), "--set", "show_rows=true"])
    assert "  1: a secret question" in capsys.readouterr().out


def test_the_folder_that_one_stands_in_has_its_name(train: Path, tok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tok)
    report = gradience.check_data(train, tokenizer=Path()).data
    assert report is not None
    assert report.tokenizer == tok.name


def test_fail_on_select_and_sarif_work_as_for_every_judging_verb(train: Path, tok: Path, capsys: Any) -> None:
    given = ["check", "--data", str(train), "--tokenizer", str(tok), "--max-length", "40"]
    assert main([*given, "--fail-on", "warning"]) == 1
    assert main([*given, "--fail-on", "warning", "--ignore", "DAT305,DAT306"]) == 0
    capsys.readouterr()
    assert main([*given, "--select", "DAT306", "--format", "sarif"]) == 0
    run = json.loads(capsys.readouterr().out)["runs"][0]
    assert [result["ruleId"] for result in run["results"]] == ["DAT306"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert (Path(place["artifactLocation"]["uri"]).name, place["region"]["startLine"]) == ("train.jsonl", 1)


def as_kind(folder: Path, kind: str, some: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict
    from pyarrow import parquet

    path = folder / f"train.{kind}"
    match kind:
        case "jsonl":
            write(path, some)
        case "json":
            path.write_text(json.dumps(some), encoding="utf-8")
        case "csv" | "tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                out = csv.DictWriter(file, list(some[0]), delimiter="," if kind == "csv" else "\t")
                out.writeheader()
                out.writerows(some)
        case "parquet":
            parquet.write_table(pa.Table.from_pylist(some), path, row_group_size=7)
        case "arrow":
            table = pa.Table.from_pylist(some)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table, max_chunksize=9)
        case "folder":
            Dataset.from_list(some).save_to_disk(path, num_shards=3)
        case "splits":
            made = Dataset.from_list(some)
            DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(path)
        case "shards":
            path.mkdir()
            write(path / "train-2.jsonl", some[20:])
            write(path / "train-1.jsonl", some[:20])
            write(path / "test-1.jsonl", some[:5])
    return path


KINDS = ["json", "csv", "tsv", "parquet", "arrow", "folder", "splits", "shards"]


@pytest.mark.parametrize(("form", "kinds"), [("prompt-completion", KINDS), ("messages", ["json", "parquet", "folder"])])
def test_every_kind_of_file_gives_the_rows_of_jsonl(form: str, kinds: list[str], tmp_path: Path, tok: Path) -> None:
    some = rows(form)
    reports = {
        kind: gradience.check_data(as_kind(tmp_path, kind, some), tokenizer=tok).data for kind in ("jsonl", *kinds)
    }
    same = {kind: msgspec.structs.replace(one, path="") for kind, one in reports.items() if one is not None}
    assert same == dict.fromkeys(reports, same["jsonl"])
    assert same["jsonl"].rows == 40


def test_a_bad_row_is_a_finding_with_its_line(train: Path, tok: Path) -> None:
    lines = train.read_text(encoding="utf-8").splitlines()
    train.write_text("\n".join([*lines[:3], "", "{broken", *lines[3:]]), encoding="utf-8")
    report = gradience.check_data(train, tokenizer=tok)
    finding = next(finding for finding in report.findings if finding.id == "DAT300")
    assert (finding.values["first"], finding.values["of"]) == ([5], 41)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", "", "no row in it"),
        ("blank.jsonl", "\n\n", "no row in it"),
        ("empty.csv", "text,label\n", "no row in it"),
        ("broken.jsonl", "{\n{\n", "no usable row at its beginning: row 1: not JSON"),
        ("list.jsonl", "[1]\n", "not an object of columns"),
        ("object.json", '{"a": 1, "b": 2}', "expected those of a known format"),
        ("number.json", "7", "expected a list of rows"),
        ("broken.json", "[1, 2", "not JSON"),
        ("deep.json", "[" * 5000, "nested more than 64 levels"),
        ("columns.jsonl", '{"question_id": 1, "votes": 2}\n', "columns question_id, votes: expected those"),
        ("types.jsonl", '{"messages": "hello"}\n', "no row can be used: messages: expected a list of messages"),
        ("image.png", "x", ".png: no data file of a known format"),
        ("none.parquet", "not parquet", "none.parquet"),
        ("none.arrow", "not arrow", "none.arrow"),
    ],
)
def test_input_that_is_no_data_set_is_one_line_and_exit_code_2(
    name: str, content: str, says: str, tmp_path: Path, tok: Path, capsys: Any
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert main(["check", "--data", str(path), "--tokenizer", str(tok)]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_folder_of_images_and_one_that_is_missing_are_one_line(tmp_path: Path, tok: Path, capsys: Any) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG")
    assert main(["check", "--data", str(tmp_path / "images"), "--tokenizer", str(tok)]) == 2
    assert "a folder without rows of a known format (it holds .png)" in capsys.readouterr().err
    assert main(["check", "--data", str(tmp_path / "nothing"), "--tokenizer", str(tok)]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_tokenizer_that_is_missing_or_has_no_template_is_one_line(
    train: Path, tmp_path: Path, tok: Path, capsys: Any
) -> None:
    assert main(["check", "--data", str(train), "--tokenizer", str(tmp_path / "gone")]) == 2
    assert "no usable tokenizer" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tok.iterdir():
        if "chat_template" not in path.name:
            (bare / path.name).write_bytes(path.read_bytes())
    assert main(["check", "--data", str(train), "--tokenizer", str(bare)]) == 2
    assert "has no chat template" in capsys.readouterr().err
    template = tmp_path / "own.jinja"
    template.write_text(QWEN_PLAIN, encoding="utf-8")
    assert main(["check", "--data", str(train), "--tokenizer", str(bare), "--set", f"template={template}"]) == 0


@pytest.mark.parametrize("packing", [False, True])
def test_without_a_tokenizer_rows_are_read_as_text_and_what_needs_tokens_is_not_judged(
    tmp_path: Path, capsys: Any, *, packing: bool
) -> None:
    turns = [{"messages": [ask("<|im_start|> why " * 900), say("key AKIA" + "Q7Z2" * 4)]}, *rows("messages", 8)]
    path = write(tmp_path / "train.jsonl", [turns[0], *turns])
    batch = {"batch_size": 3, "gradient_accumulation": 1, "world_size": 1}
    report = gradience.check_data(path, overrides=batch, packing=packing)
    assert {(one.id, one.message) for one in report.findings} >= {
        ("DAT313", "1 of 10 rows (10 %: 2) repeat an earlier row"),
        ("DAT367", "2 of 10 rows (20 %: 1, 2) hold what has the shape of a key or a token"),
    }
    why = "no tokenizer is given: rows are read as text (--tokenizer FOLDER)"
    tokens = (301, 302, *range(304, 311), 320, 324, 328, 329, 333, 361, 362, 365)
    assert [f"DAT{number}" for number in tokens] == sorted({one.id for one in report.not_run if one.reason == why})
    assert report.derived.get("steps_per_epoch") == (None if packing else 4)
    assert "tokens_per_epoch" not in report.derived
    assert main(["check", "--data", str(path)]) == 0
    out = capsys.readouterr().out
    assert "  Tokenizer:  none: what needs tokens is not judged (--tokenizer FOLDER)" in out
    assert not {"Tokens:", "Lengths:", "Padding:", "Epoch:"} & set(out.split())


def test_options_on_data_need_data(capsys: Any) -> None:
    assert main(["check", "--set", "lr=1e-4", "--eval-data", "x.jsonl"]) == 2
    assert "--eval-data without --data" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "loss"), [("text", "assistant"), ("segments", "assistant")])
def test_an_assistant_loss_that_trl_refuses_is_an_error(form: str, loss: Any, tmp_path: Path, tok: Path) -> None:
    with pytest.raises(ConfigError, match="SFTTrainer takes it for conversations only"):
        gradience.check_data(write(tmp_path / "a.jsonl", rows(form)), tokenizer=tok, loss=loss)


def test_records_hold_options_and_single_options_win_over_them(tmp_path, tok):
    path = write(tmp_path / "a.jsonl", rows("messages"))
    options, check = gradience.DataOptions(data=path, tokenizer=tok, loss="all"), gradience.CheckOptions(select=["DAT"])
    asked = [{}, {"loss": "assistant"}, {"select": ["DAT313"]}]
    found = [gradience.check_data(options=options, check=check, **given) for given in asked]
    assert [report.data.loss for report in found] == ["all", "assistant", "all"]
    assert found[0] == gradience.check_data(path, tokenizer=tok, loss="all", select=["DAT"])
    assert found[0].not_run != found[2].not_run
    with pytest.raises(TypeError, match="lss"):
        gradience.check_data(path, lss="all")


def test_a_sample_is_drawn_with_its_seed_and_says_what_it_cannot_show(tmp_path: Path, tok: Path) -> None:
    path = write(tmp_path / "train.jsonl", rows("text", 300))
    one, same, other = (gradience.check_data(path, tokenizer=tok, samples=50, seed=seed) for seed in (1, 1, 2))
    assert one.data == same.data
    assert one.data is not None
    assert other.data is not None
    assert one.data.tokens != other.data.tokens
    assert (one.data.rows_read, one.data.rows, one.data.sampled) == (50, 300, True)
    assert {item.id: item.reason for item in one.not_run}["DAT313"].endswith("--set samples=all")
    assert one.derived["tokens_per_epoch"] == 6 * one.data.tokens.kept


def test_counted_tokens_and_examples_feed_the_rules_on_the_configuration(tmp_path: Path, tok: Path) -> None:
    path = write(tmp_path / "train.jsonl", rows("messages"))
    training = tmp_path / "training.json"
    training.write_text(
        json.dumps({"learning_rate": 2e-4, "per_device_train_batch_size": 4, "world_size": 1, "max_steps": 200}),
        encoding="utf-8",
    )
    report = gradience.check_data(path, tokenizer=tok, training=training)
    assert report.data is not None
    assert report.derived["steps_per_epoch"] == 10
    assert report.config.training.extras["train_tokens"] == report.data.tokens.kept
    finding = next(finding for finding in report.findings if finding.id == "EPO001")
    assert finding.values["epochs"] == 20.0


RECIPES: dict[str, dict[str, Any]] = {
    "trl": {
        "model_name_or_path": "tok", "dataset_name": "train.jsonl", "assistant_only_loss": True, "max_length": 60,
        "learning_rate": 1e-4,
    },
    "axolotl": {
        "base_model": "tok", "datasets": [{"path": "train.jsonl", "type": "chat_template"}], "sequence_len": 60,
        "micro_batch_size": 2, "num_epochs": 1, "excess_length_strategy": "truncate",
    },
    "llama-factory": {
        "model_name_or_path": "tok", "dataset": "mine", "dataset_dir": "data", "cutoff_len": 60, "stage": "sft",
        "template": "qwen", "finetuning_type": "lora",
    },
    "torchtune": {
        "model": {"_component_": "torchtune.models.llama3.lora_llama3_8b"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
        "tokenizer": {"path": "tok/tokenizer.json", "max_seq_len": 60},
        "dataset": {"_component_": "torchtune.datasets.chat_dataset", "data_files": "train.jsonl", "packed": False},
    },
}  # fmt: skip


@pytest.mark.parametrize("program", list(RECIPES))
def test_a_recipe_names_its_data_set_tokenizer_limit_and_loss(program: str, tmp_path: Path) -> None:
    saved(tmp_path / "tok")
    write(tmp_path / "train.jsonl", rows("messages"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "../train.jsonl"}}', encoding="utf-8")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPES[program]), encoding="utf-8")
    found = gradience.check_data("recipe", document=recipe).data
    assert found is not None
    assert (found.masked_by, found.max_length, found.loss, found.rows) == (program, 60, "assistant", 40)
    assert found.loss_from == "the recipe"
    by_trl = gradience.check_data(tmp_path / "train.jsonl", tokenizer=tmp_path / "tok", loss="assistant", max_length=60)
    assert by_trl.data is not None
    assert (found.tokens.kept, by_trl.data.loss_from) == (by_trl.data.tokens.kept, "the option")
    # The turns of other programs end with the line break that the template writes after the end of turn.
    assert abs(found.tokens.supervised - by_trl.data.tokens.supervised) <= 2 * 40


@pytest.mark.oracle("trl")
def test_trls_own_template_takes_the_place_of_a_stock_one(tmp_path: Path) -> None:
    import trl

    stock = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tok = saved(tmp_path / "tok", template=stock.read_text(encoding="utf-8"))
    report = gradience.check_data(write(tmp_path / "a.jsonl", rows("messages")), tokenizer=tok, loss="assistant")
    assert report.data is not None
    assert report.data.template == "TRL, in place of the tokenizer's"
    assert ids(report) == set()
    assert report.data.tokens.supervised > 0
