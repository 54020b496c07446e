"""What the model is fed: counted as it is, in the watched batches only, and without any effect on the training."""

from __future__ import annotations

import pytest
from tables import every

torch = pytest.importorskip("torch", reason="needs the hf extra: pip install 'gradience[hf]'")

END = 2
ROWS = [[5, 6, 7, END, 0, 0], [5, 8, 9, 7, 6, END], [5, 6, 7, END, 0, 0], [4, 4, 0, 0, 0, 0]]
LABELS = [[-100, -100, 7, END, -100, -100], [-100, 8, 9, 7, 6, -100], [-100, -100, 7, END, -100, -100], [-100] * 6]


@pytest.fixture(scope="module")
def watching(training):
    from gradience.hf import watch_batches

    def watch(model=None, **given):
        model = model or training.llama()
        model.config.eos_token_id = END
        model.generation_config.eos_token_id = END
        return model, watch_batches(model, **given)

    return watch


def batch():
    ids = torch.tensor(ROWS)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(LABELS)}


def test_a_padded_batch_is_counted_as_it_is(watching):
    model, watch = watching(max_length=6)
    model(**batch())
    assert watch.values() == {
        "batches": 1,
        "watched": 1,
        "rows": 4,
        "tokens": 4 + 6 + 4 + 2,
        "padding": 8,
        "supervised": 2 + 4 + 2,
        "rows_unsupervised": 1,
        "rows_at_limit": 1,
        "rows_with_end": 2,
        "rows_repeated": 1,
        "longest": 6,
        "max_length": 6,
        "label_min": None,
        "label_max": None,
        "num_labels": None,
        "label_batches": 0,
        "label_batches_alike": 0,
        "rows_known": 3,
        "eval_rows": 0,
        "eval_rows_trained": 0,
        "packed": False,
        "asked": {},
        "rows_asked": 4,
        "wanted": {},
        "unseen": None,
    }


def test_a_packed_batch_is_counted_row_by_row(watching):
    model, watch = watching()
    whole = [row[: row.index(0)] if 0 in row else row for row in ROWS]
    cut = [labels[: len(row)] for row, labels in zip(whole, LABELS, strict=True)]
    model(
        input_ids=torch.tensor([[one for row in whole for one in row]]),
        labels=torch.tensor([[one for row in cut for one in row]]),
        position_ids=torch.tensor([[i for row in whole for i in range(len(row))]]),
    )
    found = watch.values()
    counts = (
        "rows",
        "tokens",
        "padding",
        "supervised",
        "rows_unsupervised",
        "rows_with_end",
        "rows_repeated",
        "longest",
    )
    assert [found[name] for name in counts] == [4, 16, 0, 8, 1, 2, 1, 6]
    assert found["packed"] is True
    assert found["rows_at_limit"] is None


def test_padding_on_the_left_hides_no_repeated_row(watching):
    model, watch = watching()
    ids = torch.tensor([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7], [0, 0, 7, 6, 5]])
    model(input_ids=ids, attention_mask=(ids != 0).long(), labels=ids)
    assert watch.values()["rows_repeated"] == 1
    watch.new_epoch()
    model(input_ids=ids, attention_mask=(ids != 0).long(), labels=ids)
    assert watch.values()["rows_repeated"] == 2


def test_the_first_eight_batches_and_one_in_a_hundred_are_watched(watching):
    class Fed(torch.nn.Module):
        def forward(self, input_ids=None, labels=None):
            return input_ids

    from gradience.hf import watch_batches

    model = Fed()
    watch = watch_batches(model)
    for _ in range(7):
        model(input_ids=torch.tensor([[1, 2]]))
    assert not watch.settled
    for number in range(7, 301):
        model(input_ids=torch.tensor([[1, 2]]))
        assert watch.watched == min(number + 1, 8) + number // 100  # the hundred and first, not the hundredth
    assert watch.settled
    assert (watch.batches, watch.watched) == (301, 8 + 3)


def test_evaluations_generation_and_reference_passes_are_not_counted(watching):
    model, watch = watching()
    with torch.no_grad():
        model(**batch())
    model.eval()
    model(**batch())
    assert watch.values()["batches"] == 0
    assert "compiled" in watch.values()["unseen"]


def test_of_an_evaluation_the_rows_that_were_trained_on_are_counted(watching):
    model, watch = watching()
    model(**batch())
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, END], [9, 9, 9, 9]]), labels=torch.tensor([[7] * 4] * 2))
        model(input_ids=torch.tensor([[4, 4]]))  # a generation: no labels
    found = watch.values()
    assert [found[name] for name in ("rows_known", "eval_rows", "eval_rows_trained", "rows")] == [3, 2, 1, 4]
    watch.new_epoch()
    assert watch.values()["eval_rows_trained"] == 1  # a new epoch forgets only which rows were repeated


def test_labels_of_classes_have_their_range(training):
    from gradience.hf import watch_batches

    model = training.distilbert()
    watch = watch_batches(model)
    for labels in ([0, 2, 1], [1, 1, 2], [1, 1, 1]):
        model(input_ids=torch.tensor([[5, 6, 7]] * 3), labels=torch.tensor(labels))
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([1]))  # of one row nothing is alike
    found = watch.values()
    assert [found[name] for name in ("label_batches", "label_batches_alike")] == [3, 1]
    assert [found[name] for name in ("label_min", "label_max", "num_labels", "supervised")] == [0, 2, 3, None]


@every(
    ("labels", "seen"),
    [
        (torch.tensor([[900, 7, -100], [3, 4, 5]]), (None, None)),  # a decoder's, of another length than the inputs
        (torch.tensor([[900], [3]]), (None, None)),
        (torch.tensor([1, 0]), (0, 1)),
        (torch.tensor([0.5, 1.5]), (None, None)),
    ],
)
def test_labels_are_classes_if_each_row_has_one(labels, seen):
    from gradience.hf import watch_batches

    class Any2Any(torch.nn.Module):
        def forward(self, input_ids=None, labels=None):
            return input_ids

    model = Any2Any()
    watch = watch_batches(model)
    model(input_ids=torch.tensor([[5, 6, 7, 8]] * 2), labels=labels)
    found = watch.values()
    assert (found["label_min"], found["label_max"]) == seen


def test_a_compiled_model_is_watched_from_outside_and_says_so_from_inside():
    from gradience.hf import watch_batches
    from gradience.hf.watch import BatchWatch

    if any(callable(const) for const in BatchWatch._see.__code__.co_consts):
        pytest.skip("dynamo cannot trace what slipcover puts into our functions")

    class Fed(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids * 2

    inside, outside = Fed(), Fed()
    watches = [watch_batches(inside)]
    compiled = [torch.compile(one, backend="eager") for one in (inside, outside)]
    watches.append(watch_batches(compiled[1]))
    for model in compiled:
        model(input_ids=torch.tensor([[1, 2]]))
    assert [watch.values()["rows"] for watch in watches] == [0, 1]
    assert "compiled" in watches[0].values()["unseen"]


def test_the_callback_records_the_first_batches_and_all_at_the_end(training, callback, log, tmp_path):
    training.trainer(tmp_path, callback(), max_steps=10).train()
    events = log(tmp_path).kind("data")
    assert [(event.step, event.metrics["watched"]) for event in events] == [(8, 8), (10, 8)]
    last = events[-1].metrics
    assert (last["batches"], last["rows"], last["tokens"], last["supervised"]) == (10, 32, 32 * 12, 32 * 12)


def test_data_false_records_nothing_and_leaves_no_hook(training, callback, log, tmp_path):
    model = training.llama()
    training.trainer(tmp_path, callback(data=False), model=model).train()
    assert log(tmp_path).kind("data") == []
    training.trainer(tmp_path / "more", callback(), model=model).train()
    assert not model._forward_pre_hooks


def test_masked_labels_are_one_finding_of_a_run_and_not_three(training, callback, tmp_path):
    from gradience import monitor_run

    data = training.sequences()
    masked = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in data]
    run = training.trainer(tmp_path, callback(), max_steps=12, learning_rate=2e-4)
    run.train_dataset = masked
    run.train()
    report = monitor_run(tmp_path / "run.jsonl")
    assert [(f.id, f.severity) for f in report.findings if f.severity != "info"] == [("DAT301", "critical")]
    assert {item.id: item.reason for item in report.not_run}["NUM101"].startswith("no token is supervised (see DAT301)")


def test_what_a_check_announced_is_compared_with_the_batches(training, callback, tmp_path):
    from gradience import monitor_run
    from gradience.schema.events import ConfigSnapshot
    from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport, DataReport, TokenCounts

    def announced(supervised):
        counts = TokenCounts(total=1200, kept=1200, supervised=supervised)
        data = DataReport(
            path="", format="text", trainer="sft", loss="all", rows_read=100, sequences=100, tokens=counts
        )
        return CheckReport(schema=CHECK_SCHEMA_ID, config=ConfigSnapshot(), data=data)

    for name, supervised, ids in (("same", 1200, []), ("other", 300, ["DAT321"])):
        training.trainer(tmp_path / name, callback(data=announced(supervised)), max_steps=9).train()
        report = monitor_run(tmp_path / name / "run.jsonl")
        assert [f.id for f in report.findings if f.id == "DAT321"] == ids


@pytest.mark.oracle("trl")
def test_packed_sft_batches_of_trl_are_counted(training, callback, log, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    pairs = [{"prompt": f"w{i} w2 w3 ", "completion": f"w4 w{i + 5}"} for i in range(16)]
    given = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "bf16": False}
    run = SFTTrainer(
        model=training.llama(),
        args=SFTConfig(str(tmp_path), max_length=32, packing=True, padding_free=True, save_strategy="no", **given),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[callback()],
    )
    run.train()
    found = log(tmp_path).kind("data")[-1].metrics
    assert found["packed"] is True
    assert (found["tokens"], found["supervised"]) == (6 * found["rows"], 3 * found["rows"])
    assert found["rows_with_end"] == found["rows"] > 0
    assert found["rows_unsupervised"] == found["padding"] == 0


def test_one_batch_without_labels_of_tokens_hides_what_counts_them(watching):
    model, watch = watching()
    model(**batch())
    assert watch.values()["supervised"] == 8
    model(input_ids=batch()["input_ids"])
    model(**batch())
    found = watch.values()
    assert [found[name] for name in ("supervised", "rows_unsupervised", "rows_with_end")] == [None] * 3
    assert (found["rows"], found["watched"]) == (12, 3)


def test_a_packed_batch_may_begin_amid_a_row(watching):
    model, watch = watching()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model(input_ids=ids, labels=ids, position_ids=torch.tensor([[3, 4, 0, 1, 2]]))
    found = watch.values()
    assert [found[name] for name in ("rows", "tokens", "longest", "packed", "unseen")] == [2, 5, 3, True, None]


IDS = torch.tensor([[5, 6, 7, 2, 0, 0], [5, 8, 9, 7, 6, 2]])


SHOWN = IDS != 0


class Fed(torch.nn.Module):
    """A model that only takes its batch."""

    def forward(self, input_ids=None, labels=None, attention_mask=None):
        return input_ids


@every(
    "mask",
    [SHOWN, SHOWN.long(), SHOWN.float(), SHOWN.long() * 3, SHOWN * torch.tensor([[1], [2]])],
    ids=["flags", "ones", "floats", "threes", "the number of the packed row"],
)
def test_tokens_and_padding_are_counted_and_not_the_values_of_a_mask(mask):
    from gradience.hf import watch_batches

    model = Fed()
    watch = watch_batches(model, max_length=6)
    model(input_ids=IDS, labels=IDS.where(SHOWN, -100), attention_mask=mask)
    seen = watch.values()
    assert [seen[name] for name in ("tokens", "padding", "supervised", "longest", "rows_at_limit")] == [10, 2, 10, 6, 1]


def test_without_a_mask_or_with_one_of_another_shape_every_place_is_a_token():
    from gradience.hf import watch_batches

    for mask in (None, torch.ones(2, 1, 6, 6)):
        model = Fed()
        watch = watch_batches(model)
        model(input_ids=IDS, attention_mask=mask)
        assert (watch.values()["tokens"], watch.values()["padding"]) == (12, 0)


def test_after_the_block_the_hook_is_gone(watching):
    model, watch = watching()
    with watch:
        model(**batch())
    model(**batch())
    assert watch.batches == 1


class Known:
    """What a tokenizer says of its tokens."""

    pad_token_id, eos_token_id, bos_token_id = 290, END, 1

    def get_added_vocab(self):
        return {"<turn>": 291, "<end>": END}


class Bytes:
    """A tokenizer of characters that knows one turn token and has a template."""

    eos_token_id, bos_token_id, pad_token_id = 0, None, None

    def __init__(self, template, *parts):
        self.chat_template, self.parts = template, parts

    def get_vocab(self):
        return {"<|own|>": 1}

    def decode(self, ids):
        return "".join(map(chr, ids))

    def apply_chat_template(self, turns, *, tokenize):
        assert not tokenize
        return "".join(f"{start}{turn['role']}{end}" for turn in turns for start, end in self.parts)


@every(
    ("template", "parts", "text", "rows"),
    [
        (None, [], "<|user|>hi", 8),
        (None, [], "<|own|>hi", 0),
        (None, [], "[INST] <b>hi</b>", 0),
        ("<|own|>", [], "<|own|>a<|user|>hi", 8),
        ("a <|user|> b", [], "<|user|>hi", 0),
        ("put together", [("<|", "|>")], "<|user|>hi<|assistant|>", 0),
        ("put together", [("<|", "|>")], "<|user|>hi<|system_prompt|>", 8),
        ("one that fails", [None], "<|user|>hi", 0),
        (None, [], "a" * 2048 + "<|user|>", 0),
        (None, [], "a" * 2040 + "<|user|>", 8),
    ],
)
def test_turn_tokens_in_pieces_are_those_that_neither_tokenizer_nor_template_has(template, parts, text, rows):
    from gradience.hf import watch_batches

    watch = watch_batches(torch.nn.Linear(1, 1), tokenizer=Bytes(template, *parts))
    ids = torch.tensor([[ord(one) for one in text]] * 4)
    for _ in range(3):
        watch.see({"input_ids": ids, "labels": ids})
    assert watch.values()["asked"].get("foreign_tokens", 0) == rows


TURNS = [291, 260, END, 291, 261, 270, END, 291, 262, END, 291, 261, 271, END]


@every(
    ("ids", "mask", "labels", "asked"),
    [
        ([300, 301, 290, 290], [1, 1, 0, 0], [300, 301, -100, -100, [0, 0, 7, 8]], {"placeless": 1}),
        ([300, 301, 290, 290], [1, 1, 0, 0], [300, 301, -100, -100, [0, 1, 1, 1]], {}),
        ([300, 290, 290, 290], [1, 0, 0, 0], [300, -100, -100, -100, [0, 1, 1, 1]], {}),
        ([*range(300, 306)], [1] * 6, [*range(301, 306), -100], {"labels_differ": 1, "labels_shifted": 1}),
        ([300, 301, 302, 303], [1] * 4, [300, 301, 302, 303], {}),
        ([300, 290, 290, 290], [1, 0, 0, 0], [300, 290, 290, 290], {"padding_supervised": 1}),
        ([300, 301, 302, 303], [1, 1, 0, 0], [300, 301, 302, 303], {"padding_supervised": 1}),  # no padding token
        ([300, 290, 290, 290], [1, 0, 0, 0], [300, -100, -100, -100], {}),
        ([290, 1, 1, 300], [0, 1, 1, 1], [-100, -100, -100, 300], {"double_bos": 1}),
        ([300, 301, 302, 303], [0] * 4, [300, 301, 302, 303], {"unattended": 1}),
        ([300, 301, 302, 303], [1, 1, 0, 0], [-100, -100, 302, 303], {"unattended": 1}),
        ([300, 301, 302, 303], [1, 1, 1, 0], [-100, -100, 302, 303], {}),
        ([300, 301, 290, 290], [1, 1, 0, 0], [-100] * 4, {}),
        ([300, 290, 290, 290], None, [300, -100, -100, -100], {}),
        ([300] * 3 + [301] * 4, None, [300] * 3 + [-100] * 3 + [301], {}),
        (TURNS, [1] * 14, [-100] * 12 + TURNS[12:],
         {"several_answers": 1, "last_answer_only": 1, "turns_or_documents": 1}),
        (TURNS[:7], [1] * 7, [-100] * 5 + TURNS[5:7], {"turns_or_documents": 1}),
        ([300] * 5 + [301] * 5, [1] * 10, [300] * 5 + [-100] * 5, {"inverted": 1}),
    ],
)  # fmt: skip
def test_a_live_row_is_asked_what_a_row_of_a_file_is_asked(ids, mask, labels, asked):
    from gradience.hf import watch_batches

    class Fed(torch.nn.Module):
        def forward(self, input_ids=None, attention_mask=None, labels=None, position_ids=None):
            return input_ids

    model = Fed()
    watch = watch_batches(model, tokenizer=Known())
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels[: len(ids)]}
    given["position_ids"] = labels[-1] if len(labels) > len(ids) else None
    for _ in range(9):
        model(**{name: torch.tensor([one] * 3) for name, one in given.items() if one})
    found = watch.values()
    assert found["asked"] == {name: 8 * n for name, n in asked.items()}  # of batches of three: 3, 3 and 2
    assert found["rows_asked"] == 8
