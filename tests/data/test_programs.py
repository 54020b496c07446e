"""The prompt and the cut of LLaMA-Factory, ms-swift and Axolotl: their own where installed, else said to be assumed.

The programs are stand-ins with the interfaces of LLaMA-Factory 0.9.5 and ms-swift 4.6, which were run once
with Qwen's tokenizer; here they write a template of a few words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made import rows, saved, write
from tables import every

from gradience.configs.document import DataPlan, read_data_plan
from gradience.data.cutting import cut_at, shares
from gradience.errors import ConfigError
from gradience.io import confined
from gradience.schema.reports import DataReport
from gradience.verbs.check.data import check_data

FACTORY = """
class Template:
    def __init__(self, system): self.system = system
    def pair(self, tokenizer, asked, answer, system):
        code = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        return code((system or self.system) + " ".join(asked)), code(answer)
def get_template_and_fix_tokenizer(tokenizer, arguments):
    if arguments.template not in {"kind"}: raise ValueError(f"Template {arguments.template} does not exist.")
    return Template("be kind to all who ask")
"""
PROCESSOR = """
class SupervisedDatasetProcessor:
    def __init__(self, template, tokenizer, processor, data_args):
        self.template, self.tokenizer, self.limit = template, tokenizer, data_args.cutoff_len
    def preprocess_dataset(self, some):
        asked = [turn["content"] for turn in some["_prompt"][0]]
        if "drop me" in asked: return {}
        left, right = self.template.pair(self.tokenizer, asked, some["_response"][0][0]["content"], some["_system"][0])
        left, right = left[: self.limit // 2], right[: self.limit // 2]
        return {"input_ids": [left + right], "labels": [[-100] * len(left) + right]}
class PairwiseDatasetProcessor(SupervisedDatasetProcessor):
    def preprocess_dataset(self, some):
        sides = zip(("chosen_", "rejected_"), some["_response"][0])
        made = [(side, super(PairwiseDatasetProcessor, self).preprocess_dataset({**some, "_response": [[one]]}))
                for side, one in sides]
        return {side + name: value for side, one in made for name, value in one.items()}
class FeedbackDatasetProcessor(SupervisedDatasetProcessor):
    def preprocess_dataset(self, some):
        first, second = some["_response"][0]
        said, one = ("good", first) if first["content"] else ("bad " * 9, second)
        return super().preprocess_dataset({**some, "_system": [said], "_response": [[one]]})
class PretrainDatasetProcessor(SupervisedDatasetProcessor):
    def preprocess_dataset(self, some):
        assert not some["_response"][0]
        ids = self.tokenizer(some["_prompt"][0][0]["content"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [ids[: self.limit]]}
"""
ARGUMENTS = """
from dataclasses import dataclass
@dataclass
class DataArguments:
    template: str | None = None
    cutoff_len: int = 2048
    train_on_prompt: bool = False
"""
SWIFT = """
class Template:
    def __init__(self, tokenizer, system, most): self.tokenizer, self.system, self.most = tokenizer, system, most
    def set_mode(self, mode): self.mode = mode
    def encode(self, row):
        code = lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"]
        asked = code((self.system or "swift") + " " + row["messages"][0]["content"])
        ids, labels = asked + code(row["messages"][1]["content"]), [-100] * len(asked)
        labels += ids[len(asked):]
        return {"input_ids": ids[: self.most], "labels": labels[: self.most]}
def get_template(tokenizer, system, most, *, template_type, truncation_strategy, **more):
    assert tokenizer.model_meta.template == template_type
    return Template(tokenizer, system, most)
"""
FILES = {
    "llamafactory/__init__.py": "",
    "llamafactory/data/__init__.py": FACTORY,
    "llamafactory/data/processor.py": PROCESSOR,
    "llamafactory/hparams.py": ARGUMENTS,
    "swift/__init__.py": "",
    "swift/model.py": "def get_matched_model_meta(name): return None",
    "swift/template.py": SWIFT,
}
OF_FACTORY = "model_name_or_path: {tok}\nstage: sft\nfinetuning_type: lora\ndataset: mine\ndataset_dir: .\n"
OF_SWIFT = "model: {tok}\ndataset: train.jsonl#500\ntuner_type: lora\nlearning_rate: 0.1\n"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """LLaMA-Factory and ms-swift are installed, for a helper process that is started anew, which takes seconds."""
    site = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        confined.end_helper()
        yield
        confined.end_helper()


def checked(folder: Path, recipe: str, tok: Path, some: list[dict[str, Any]], **given: Any) -> DataReport:
    write(folder / "train.jsonl", some)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "train.jsonl"}}))
    (folder / "recipe.yaml").write_text(recipe.format(tok=tok))
    report = check_data(training=folder / "recipe.yaml", tokenizer=tok, select=["DAT"], **given).data
    assert report is not None
    return report


def test_where_no_program_is_installed_the_prompt_is_assumed_and_the_cut_is_theirs(tmp_path: Path, tok: Path) -> None:
    some = [{**one, "instruction": "why is bread warm " * 8} for one in rows("instruction", 6)]
    factory = checked(tmp_path, OF_FACTORY + "template: kind\ncutoff_len: 20\n", tok, some)
    assert factory.prompt == (
        "assumed: the tokenizer's chat template; llama-factory writes its own template 'kind'; it may add a system text"
    )
    assert checked(tmp_path, OF_FACTORY + "cutoff_len: 20\n", tok, some).prompt == ""  # it takes the tokenizer's
    plain = write(tmp_path / "text.jsonl", [{"text": one["instruction"]} for one in some])
    assert check_data(plain, tokenizer=tok).data.prompt == ""  # no template is used
    assert factory.seen["question_cut"].count == 6
    assert factory.tokens.kept == 6 * 20

    swift = checked(tmp_path, OF_SWIFT + "max_length: 20\n", tok, some)
    assert swift.prompt.startswith(
        "assumed: the tokenizer's chat template; ms-swift writes the template that it has for"
    )
    assert (swift.tokens.kept, swift.seen["answer_lost"].count, swift.seen["question_cut"].count) == (0, 6, 0)
    left = checked(tmp_path, OF_SWIFT + "max_length: 20\ntruncation_strategy: left\n", tok, some)
    assert (left.tokens.kept, left.seen["answer_lost"].count) == (6 * 20, 0)
    assert left.tokens.supervised > factory.tokens.supervised  # the answer stands at the end


ROW = {"instruction": "why is bread warm", "input": "", "output": "it is new it is new"}


def test_an_installed_program_writes_the_prompt_and_makes_the_cut(programs: None, tmp_path: Path, tok: Path) -> None:
    asked = len(["be", "kind", "to", "all", "who", "ask", "why", "is", "bread", "warm"])
    recipe = OF_FACTORY + "template: kind\ncutoff_len: {limit}\n"
    whole = checked(tmp_path, recipe.replace("{limit}", "64"), tok, [ROW] * 3)
    assert whole.prompt == "the template kind of llama-factory, as it is installed here"
    assert whole.template == "llama-factory (kind)"
    assert whole.lengths.longest > asked  # the system text is in it
    assert (whole.tokens.kept, whole.seen["cut"].count) == (whole.tokens.total, 0)

    cut = checked(tmp_path, recipe.replace("{limit}", "8"), tok, [ROW] * 3)
    assert (cut.lengths.longest, cut.tokens.kept) == (whole.lengths.longest, 3 * 8)  # half of it for each side
    assert (cut.seen["question_cut"].count, cut.seen["answer_cut"].count) == (3, 3)

    odd = [{**ROW, "instruction": "drop me"}, ROW]
    assert [fault.reason for fault in checked(tmp_path, recipe.replace("{limit}", "64"), tok, odd).faults] == [
        "the program leaves it out"
    ]
    unknown = checked(tmp_path, OF_FACTORY + "template: rude\n", tok, [ROW])
    assert unknown.prompt.endswith("cannot be used: ValueError: Template rude does not exist.")

    swift = checked(tmp_path, OF_SWIFT + "template: plain\nmax_length: 64\n", tok, [ROW])
    assert (swift.prompt, swift.masked_by) == ("the template plain of ms-swift, as it is installed here", "ms-swift")
    without = checked(tmp_path, OF_SWIFT, tok, [ROW])
    assert "ms-swift knows no template of this model" in without.prompt


def test_llama_factory_s_other_stages_are_prepared_by_it(programs: None, tmp_path: Path, tok: Path) -> None:
    recipe = OF_FACTORY + "template: kind\ncutoff_len: 64\n"
    pair = {"instruction": ROW["instruction"], "chosen": ROW["output"], "rejected": "no"}
    by_stage = {
        "pt": checked(tmp_path, recipe.replace("sft", "pt"), tok, [{"instruction": "it is new"}] * 3),
        "kto": checked(tmp_path, recipe.replace("sft", "kto"), tok, [{**ROW, "kto_tag": True}] * 2),
        "not": checked(tmp_path, recipe.replace("sft", "kto"), tok, [{**ROW, "kto_tag": False}] * 2),
        "rm": checked(tmp_path, recipe.replace("sft", "rm"), tok, [pair] * 2),
    }
    assert {stage: (one.trainer, one.format, one.loss) for stage, one in by_stage.items()} == {
        "pt": ("sft", "text", "all"),
        "kto": ("kto", "kto", "completion"),
        "not": ("kto", "kto", "completion"),
        "rm": ("reward", "preference", "none"),
    }
    assert all(one.prompt.startswith("the template kind") for one in by_stage.values())
    assert by_stage["pt"].tokens.supervised == by_stage["pt"].tokens.total
    assert (by_stage["pt"].packing, by_stage["pt"].keeps_overflow) == (True, True)
    assert by_stage["not"].tokens.total > by_stage["kto"].tokens.total  # the stand-in writes more words


@every(
    ("asked", "answered", "room", "expected"),
    [
        (150, 29, 64, (35, 29)),  # the answer takes less than half: the question is cut
        (10, 150, 64, (10, 54)),  # the question takes less than half: the answer is cut
        (60, 40, 50, (30, 20)),  # both are cut in proportion
        (60, 25, 50, (36, 14)),  # the answer takes just half
        (25, 60, 50, (15, 35)),
        (24, 60, 50, (24, 26)),
        (5, 5, 64, (5, 5)),
        (0, 9, 4, (0, 4)),
        (9, 0, 4, (4, 0)),
        (0, 0, 0, (0, 0)),
    ],
)
def test_a_question_and_its_answer_share_the_room(
    asked: int, answered: int, room: int, expected: tuple[int, int]
) -> None:
    assert shares(asked, answered, room) == expected


def test_each_turn_is_cut_after_the_other() -> None:
    mask = [0] * 10 + [1] * 5 + [0] * 10 + [1] * 5
    assert list(cut_at(20, mask, 30, "shared")) == [*range(19), 25]
    assert list(cut_at(12, mask, 30, "shared")) == [*range(7), *range(10, 15)]
    assert list(cut_at(30, mask, 30, "shared")) == list(range(30))
    assert list(cut_at(3, [1] * 6, 6, "shared")) == [0, 1, 2]
    assert list(cut_at(4, [0, 1] * 3, 6, "cut_left")) == [2, 3, 4, 5]
    assert list(cut_at(4, None, 6, "cut")) == [0, 1, 2, 3]


def plan(folder: Path, recipe: str) -> DataPlan:
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return read_data_plan(path)


def test_ms_swift_s_recipe(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    text = "model: x\ntrain_type: lora\ndataset: [d.jsonl#20, e.jsonl]\ncolumns: {q: query}\nmax_length: 9\n"
    found = plan(tmp_path, text + "template: qwen\npacking: true\ntruncation_strategy: split\n")
    assert (found.program, found.train, found.prompt) == ("ms-swift", tmp_path / "d.jsonl", "qwen")
    assert (found.max_length, found.packing, found.loss, found.keeps_overflow) == (9, True, "assistant", True)
    assert (found.naming.columns, found.notes) == (
        {"q": "query"},
        ("the recipe names 2 data sets: only the first is read",),
    )
    assert plan(tmp_path, text + "loss_scale: all\n").loss == "all"
    assert (plan(tmp_path, text).task, plan(tmp_path, text + "rlhf_type: rm\n").task) == (None, "rm")
    axolotl = "base_model: x\nsequence_len: 9\nmicro_batch_size: 1\n"
    assert (plan(tmp_path, axolotl).task, plan(tmp_path, axolotl + "reward_model: true\n").task) == (None, "reward")


def test_mlx_s_recipe(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for name in ("train", "valid"):
        (tmp_path / "rows" / f"{name}.jsonl").write_text("{}\n")
    text = "model: m\ndata: rows\niters: 9\nnum_layers: 4\n"
    found = plan(tmp_path, f"{text}mask_prompt: true\nprompt_feature: q\nmax_seq_length: 7\n")
    assert (found.program, found.train, found.evaluation) == ("mlx-lm", *(
        tmp_path / "rows" / f"{name}.jsonl" for name in ("train", "valid")
    ))  # fmt: skip
    assert (found.loss, found.max_length, found.overlong) == ("assistant", 7, "cut")
    renamed = {"q": "instruction", "completion": "output", "messages": "messages", "text": "text"}
    assert found.naming.columns == renamed
    assert (plan(tmp_path, text).loss, plan(tmp_path, text).max_length) == ("all", 2048)
    assert plan(tmp_path, "iters: 9\nmodel: m\n").program == "trl"
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": "a"}\n')
    plan(tmp_path, f"{text}mask_prompt: true\n")
    with pytest.raises(ConfigError, match="mask_prompt on rows of text: MLX-LM refuses it"):
        check_data(tokenizer=saved(tmp_path / "tok"), training=tmp_path / "recipe.yaml")


def test_axolotl_s_template_of_the_data_set_wins(tmp_path: Path) -> None:
    text = "base_model: x\nsequence_len: 9\nmicro_batch_size: 1\nchat_template: chatml\ndatasets:\n  - path: d\n"
    assert plan(tmp_path, text).prompt == "chatml"
    assert plan(tmp_path, f"{text}    chat_template: llama3\n").prompt == "llama3"
