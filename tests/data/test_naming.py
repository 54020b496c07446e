"""A recipe's own names of columns, roles and keys: rows are read under them, as the program reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made import rows, write

from gradience.verbs.check.data import check_data

TALK = [("kim", "why is bread warm"), ("bot", "it is new")]


def checked(folder: Path, some: list[dict[str, Any]], recipe: str, info: dict[str, Any] | None, tok: Path) -> Any:
    write(folder / "train.jsonl", some)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "train.jsonl", **(info or {})}}))
    report = check_data(training=folder / "recipe.yaml", tokenizer=tok, select=["DAT"]).data
    assert report is not None
    return report.format, report.tokens.supervised, report.unwritten_roles, report.seen["no_assistant"].count


def test_llama_factory_s_columns_and_tags(tmp_path: Path, tok: Path) -> None:
    recipe = f"model_name_or_path: {tok}\nstage: sft\nfinetuning_type: lora\ndataset: mine\ndataset_dir: .\n"
    plain = rows("instruction", 9)
    renamed = [{"q": one["instruction"], "x": one["input"], "a": one["output"]} for one in plain]
    columns = {"columns": {"prompt": "q", "query": "x", "response": "a"}}
    expected = checked(tmp_path, plain, recipe, None, tok)
    assert expected[0] == "instruction"
    assert checked(tmp_path, renamed, recipe, columns, tok) == expected

    talks = [{"chat": [{"who": who, "said": said} for who, said in TALK]}] * 3
    info = {
        "formatting": "sharegpt",
        "columns": {"messages": "chat"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "kim", "assistant_tag": "bot"},
    }
    form, supervised, unwritten, without = checked(tmp_path, talks, recipe, info, tok)
    assert (form, unwritten, without) == ("sharegpt", {}, 0)
    assert supervised > 0


def test_axolotl_s_fields_and_roles(tmp_path: Path, tok: Path) -> None:
    recipe = (
        f"base_model: {tok}\nsequence_len: 512\nmicro_batch_size: 2\nadapter: lora\nlora_r: 8\ndatasets:\n"
        "  - path: train.jsonl\n    type: chat_template\n    field_messages: chat\n"
        "    message_property_mappings: {role: who, content: said}\n    roles: {user: [kim], assistant: [bot]}\n"
    )
    talks = [{"chat": [{"who": who, "said": said} for who, said in TALK]}] * 3
    plain = [{"messages": [{"role": "user", "content": TALK[0][1]}, {"role": "assistant", "content": TALK[1][1]}]}] * 3
    bare = recipe.partition("    field_messages")[0]
    assert checked(tmp_path, talks, recipe, None, tok) == checked(tmp_path, plain, bare, None, tok)
