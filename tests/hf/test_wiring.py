"""What is trained, as the callback and `TelemetryWriter.watch` record and judge it while a tiny model trains."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import random
import shutil
import sys

import numpy as np
import pytest
from tables import every

from gradience import TelemetryReader, TelemetryWriter, monitor_run
from gradience.events import Alert, RunEnd, StepDigests, Wiring

torch = pytest.importorskip("torch", reason="needs the hf extra: pip install -e '.[hf]'")
peft = pytest.importorskip("peft", reason="needs the hf extra: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="needs the hf extra: pip install -e '.[hf]'")

from gradience.hf import GradienceCallback  # noqa: E402  # after the skip where torch is not installed
from gradience.hf.digests import batch_text, digest_of, random_digest, row_hashes  # noqa: E402  # the same
from gradience.hf.leftover import Leftover  # noqa: E402  # the same
from gradience.hf.pace import PaceMeter  # noqa: E402  # the same
from gradience.hf.parameters import adapter_of, parts_of  # noqa: E402  # the same
from gradience.hf.passes import Passes  # noqa: E402  # the same
from gradience.hf.watch import BatchWatch  # noqa: E402  # the same
from gradience.hf.wiring import data_of, look  # noqa: E402  # the same
from gradience.schema.wiring import EvaluationWiring, PassWiring  # noqa: E402  # the same

pytestmark = pytest.mark.usefixtures("training")
ROWS = torch.arange(24).reshape(2, 12)


def llama(**given):
    return sys.modules["hf_training"].llama(**given)


def events(folder, kind):
    return list(TelemetryReader(folder / "run.jsonl").of(kind))


def alerts(folder):
    return {event.code: event.step for event in events(folder, Alert)}


def trained(model):
    return [tensor for tensor in model.parameters() if tensor.requires_grad]


def unfrozen(model):
    for tensor in model.parameters():
        tensor.requires_grad_()
    return model


def fit(out, model, *, resume=None, optimizer=None, callback=None, **given):
    trainer = transformers.Trainer(
        model=model,
        args=sys.modules["hf_training"].arguments(out, **{"max_steps": 10, **given}),
        train_dataset=sys.modules["hf_training"].sequences(),
        callbacks=[callback or GradienceCallback(verbose=False)],
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def loop(out, model, optimizer, *, steps=9, begin=0, run_id=None, save=False, **options):
    """A plain loop of one's own; returns the run's id and the watch."""
    with TelemetryWriter(out / "run.jsonl", run_id=run_id) as log:
        log.run_start({}, resumed_from_step=begin or None)
        wires = log.watch(model, optimizer, verbose=False, **options)
        for step in range(begin, begin + steps):
            rows = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(step))
            loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.train_step(step + 1, loss=loss.item())
        if save:
            wires.saved()
    return log.run_id, wires


def test_parameters_are_told_apart_by_what_they_are():
    model = llama(modules_to_save=["lm_head"], bias="lora_only")
    parts = {part.name.removeprefix("base_model.model."): part for part in parts_of(model)}
    assert parts["model.layers.0.self_attn.q_proj.lora_A.default.weight"].kind == "adapter"
    assert parts["model.layers.0.self_attn.q_proj.lora_A.default.weight"].adapter == "default"
    assert parts["model.layers.0.self_attn.q_proj.base_layer.weight"].kind == "base"
    assert parts["lm_head.modules_to_save.default.weight"].kind == "whole"
    assert parts["model.embed_tokens.weight"].kind == "embedding"
    assert parts["model.norm.weight"].kind == "norm"


def test_a_trained_module_around_an_adapted_model_is_a_head_and_a_frozen_one_of_the_base():
    around = torch.nn.ModuleDict({"model": llama(), "own": torch.nn.Linear(2, 2), "eye": torch.nn.Linear(2, 2)})
    around["eye"].requires_grad_(requires_grad=False)
    kinds = {part.name: part.kind for part in parts_of(around)}
    assert (kinds["own.weight"], kinds["eye.weight"]) == ("head", "base")
    assert kinds["model.base_model.model.model.layers.0.mlp.up_proj.weight"] == "base"


def test_the_embedding_under_trained_tokens_is_not_of_the_adapter():
    parts = [part for part in parts_of(llama(trainable_token_indices=[1, 2])) if "embed_tokens" in part.name]
    assert {(part.kind, part.tensor.requires_grad) for part in parts} == {("adapter", True), ("embedding", False)}


def test_a_look_has_the_counts_of_a_small_model():
    model = llama()
    seen = look(model, [torch.optim.AdamW(trained(model), lr=1e-3)])
    (own,) = [group for group in seen["groups"] if group.kind == "adapter"]
    assert (own.trainable, own.tensors, own.matrices, own.dtypes) == (1024, 8, 8, ["float32"])
    assert (seen["adapter"].layers, seen["adapter"].active, seen["adapter"].methods) == (4, ["default"], ["LORA"])
    assert (seen["optimizer"].held, seen["optimizer"].missing) == (8, {})
    assert seen["dropouts"] == {"0.1": 4}
    assert seen["unseen"] == []


def test_of_a_stream_the_number_of_rows_is_not_known():
    loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
    assert (data_of(loader).rows, data_of(loader).batch_size, data_of(None)) == (None, 4, None)


class Stream(torch.utils.data.IterableDataset):
    """Has no length."""

    def __iter__(self):
        return iter(ROWS)


def test_a_schedule_and_tensors_of_two_optimizers_are_seen():
    model = llama()
    one, two = (torch.optim.AdamW(trained(model), lr=1e-3) for _ in range(2))
    schedule = torch.optim.lr_scheduler.LambdaLR(one, lambda _: 1.0)
    assert look(model, [one], schedule)["schedule"].foreign is False
    assert look(model, [two, one], schedule)["schedule"].foreign is False
    assert look(model, [two], schedule)["schedule"].foreign is True
    assert look(model, [], schedule)["schedule"].foreign is False
    assert [look(model, held)["optimizer"].doubled for held in ([one], [one, two])] == [0, 8]


def test_how_a_model_is_called_for_a_step():
    model, rows = llama(), {"input_ids": ROWS}
    passes = Passes(model)
    model.train()(**rows)
    assert passes.step_made() is None  # as it should be
    model.eval()(**rows)
    assert passes.step_made() == PassWiring(training=False)
    model(**rows)
    assert passes.step_made() is None  # as before
    with model.train().disable_adapter():
        model(**rows)
    assert passes.step_made() == PassWiring(off=True)
    model.merge_adapter()
    model(**rows)
    assert passes.step_made() == PassWiring(merged=True)
    model.unmerge_adapter()
    model(**rows)
    with torch.no_grad():  # a reference, or an evaluation
        model.eval()(**rows)
    assert passes.step_made() == PassWiring()
    passes.remove()
    model.train(mode=False)(**rows)
    assert passes.step_made() is None


def test_an_adapter_that_is_trained_later_is_no_other():
    model = llama()
    model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    passes = Passes(model)
    model.set_adapter("b")
    model.train()(input_ids=ROWS)
    assert passes.step_made() is None
    model.base_model.set_adapter("b", inference_mode=True)
    model(input_ids=ROWS)
    assert passes.step_made() == PassWiring(off=True)


def test_what_an_evaluation_calls():
    model, rows = llama(), {"input_ids": ROWS}
    passes = Passes(model)
    assert passes.evaluated() is None  # no training call was seen, as in a compiled model
    model.train()(**rows)
    passes.step_made()
    assert passes.evaluated() == EvaluationWiring(called=False, adapted=False)
    assert passes.evaluated() is None  # said
    with torch.no_grad(), model.disable_adapter():
        model.eval()(**rows)
    assert passes.evaluated() == EvaluationWiring(called=True, adapted=False)
    with torch.no_grad():
        model(**rows)
    assert passes.evaluated() == EvaluationWiring(called=True, adapted=True)
    model.train()(**rows)
    passes.step_made()
    with torch.no_grad():
        model(**rows)
    assert passes.evaluated() == EvaluationWiring(called=True, adapted=True, training=True)
    with torch.no_grad():
        model.eval()(**rows)  # one of two
    assert passes.evaluated() == EvaluationWiring(called=True, adapted=True)
    model.train()(**rows)
    passes.step_made()
    model(**rows)  # of a micro-batch
    assert passes.evaluated() is None


def test_a_model_without_an_adapter_is_seen_through_any_of_its_modules():
    model = llama().unload()
    for tensor in model.parameters():
        tensor.requires_grad_()
    passes = Passes(torch.nn.ModuleDict({"wrapped": model}))
    model.train()(input_ids=ROWS)
    assert passes.step_made() is None
    assert passes.evaluated() == EvaluationWiring(called=False)
    model.eval().model(input_ids=ROWS)
    assert passes.evaluated() == EvaluationWiring(called=True)


def test_what_cannot_be_looked_at_is_named():
    class Odd(torch.nn.Linear):
        adapter_layer_names = ()
        active_adapters = 3

    assert look(torch.nn.Sequential(Odd(2, 2), torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2)})))["unseen"] == [
        "adapter: TypeError"
    ]


def test_digests_are_of_the_values_and_not_of_the_order():
    a, b = torch.rand(50), torch.rand(3, 4)
    whole = digest_of([("a", a), ("b", b)], 1 << 20)
    assert whole == digest_of([("b", b), ("module.a", a)], 1 << 20)
    assert whole != digest_of([("b", a), ("a", b)], 1 << 20)
    for place in (0, 49):
        other = a.clone()
        other[place] = torch.nextafter(other[place], torch.tensor(2.0))
        assert digest_of([("a", other), ("b", b)], 1 << 20) != whole
    assert digest_of([("a", a.flip(0)), ("b", b)], 1 << 20) != whole
    assert digest_of([], 1) is None


def test_a_digest_over_its_budget_is_sampled_and_says_so():
    assert digest_of([("a", torch.zeros(100))], 400).sampled == 1
    assert digest_of([("a", torch.zeros(101))], 400).sampled == 2


@every("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool, torch.complex64])
def test_any_dtype_has_a_digest(dtype):
    one = torch.ones(5).to(dtype)
    assert digest_of([("a", one)], 999) != digest_of([("a", torch.zeros_like(one))], 999)


def test_a_row_is_the_same_wherever_it_is_padded():
    row, pad = torch.tensor([5, 6, 7]), torch.tensor([0, 0])
    left = row_hashes((), {"input_ids": torch.cat([pad, row])[None], "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])})
    right = row_hashes(
        (), {"input_ids": torch.cat([row, pad])[None], "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    )
    assert left[0] == right[0] == row_hashes((), {"input_ids": row[None]})[0]
    assert left[0] != row_hashes((), {"input_ids": row.flip(0)[None]})[0]


def test_labels_are_part_of_a_row():
    with_labels = row_hashes((), {"input_ids": ROWS, "labels": ROWS})[:2]
    assert (with_labels != row_hashes((), {"input_ids": ROWS, "labels": ROWS.clone().fill_(-100)})[:2]).all()
    assert (with_labels != row_hashes((), {"input_ids": ROWS, "labels": torch.tensor([0, 1])})[:2]).all()


def test_more_rows_than_16_are_summed():
    rows = torch.arange(40).reshape(20, 2)
    hashes = row_hashes((), {"input_ids": rows})
    assert len(hashes) == 17
    text = batch_text(hashes.tolist(), 20)
    assert text.count(" ") == 16
    assert f"+4:{hashes[-1]:06x}" in text


def test_the_random_states_are_read_and_not_moved():
    before = torch.get_rng_state()
    first = random_digest()
    assert random_digest() == first
    assert torch.equal(torch.get_rng_state(), before)
    for draw in (lambda: torch.rand(1), random.random, np.random.random):  # the state of NumPy itself
        before = random_digest()
        draw()
        assert random_digest() != before


@every(
    ("tied", "whole", "adapted", "expected"),
    [
        (True, ["lm_head"], [], ["lm_head"]),
        (False, ["lm_head"], [], []),
        (True, ["embed_tokens", "lm_head"], [], ["embed_tokens", "lm_head"]),
        (True, ["embed_tokens"], [], []),  # which a merge writes to both
        (True, [], ["lm_head"], ["lm_head (LoRA)"]),
        (True, [], [], []),
    ],
)
def test_a_tied_head_that_trains_apart_is_seen(tied, whole, adapted, expected):
    model = llama(modules_to_save=whole, target_modules=["q_proj", *adapted])
    model.get_base_model().config.tie_word_embeddings = tied
    assert adapter_of(model, parts_of(model)).untied == expected


def test_a_frozen_head_that_is_as_it_was_drawn_is_named():
    make = sys.modules["hf_training"].distilbert
    assert look(make())["adapter"].new_heads == []  # PEFT trains it
    (name,) = look(make(task_type="FEATURE_EXTRACTION"))["adapter"].new_heads
    assert name.endswith("classifier.weight")


@pytest.fixture(scope="module")
def saved(training, tmp_path_factory):
    """A run of ten steps that saved at its fifth; copy it before resuming."""
    out = tmp_path_factory.mktemp("saved")
    fit(out, llama(), save_strategy="steps", save_steps=5, learning_rate=1e-3)
    return out


def test_a_trainer_records_start_first_steps_save_and_each_batch(saved):
    looks = events(saved, Wiring)
    assert [(each.phase, each.step) for each in looks] == [("start", 0), ("save", 5), ("gradients", 8), ("save", 10)]
    assert looks[2].gradients.reached == looks[2].gradients.tensors == 8
    assert (looks[1].saved.tensors, looks[1].saved.parameters) == (8, 1024)
    assert looks[0].data.batch_size == 4
    (digests,) = events(saved, StepDigests)
    assert (digests.first, digests.step, len(digests.batches), len(digests.rng)) == (1, 10, 10, 10)
    assert all(len(batch.split()) == 4 for batch in digests.batches)
    assert alerts(saved) == {}


@pytest.mark.parametrize(
    ("lost", "other", "expected"),
    [
        (False, {}, {}),
        (False, {"seed": 7}, {"WIR177": 5}),
        (False, {"ignore_data_skip": True}, {"WIR177": 5}),
        (True, {}, {"WIR176": 5}),
    ],
    ids=["as saved", "seed", "data begun anew", "optimizer lost"],
)
def test_a_resume_with_other_data_or_without_its_optimizer_is_named(saved, tmp_path, lost, other, expected):
    out = shutil.copytree(saved, tmp_path / "run")
    if lost:
        (out / "checkpoint-5" / "optimizer.pt").unlink()
    fit(out, llama(), resume=str(out / "checkpoint-5"), learning_rate=1e-3, **other)
    assert [each.phase for each in events(out, Wiring)][-2:] == ["resume", "gradients"]
    assert expected.items() <= alerts(out).items()
    assert expected or alerts(out) == {}


def test_micro_batches_are_divided(tmp_path):
    fit(tmp_path, llama(), gradient_accumulation_steps=2, max_steps=2)
    (digests,) = events(tmp_path, StepDigests)
    assert [batch.count("|") for batch in digests.batches] == [1, 1]


@pytest.mark.parametrize("off", [{"wiring": False}, {"digests": False}])
def test_each_may_be_off(tmp_path, off):
    fit(tmp_path, llama(), max_steps=2, callback=GradienceCallback(verbose=False, **off))
    assert events(tmp_path, StepDigests) == []
    assert bool(events(tmp_path, Wiring)) == ("digests" in off)


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_watched_loop_is_bit_for_bit_that_without(tmp_path, accelerate):
    def train(log):
        model = llama()
        optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
        if accelerate:
            model, optimizer = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(model, optimizer)
        if log is not None:
            log.run_start({})
            log.watch(model, optimizer)
        for step in range(9):
            rows = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(step))
            model.train()(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [*model.parameters(), torch.get_rng_state()]

    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        watched = train(log)
    assert all(torch.equal(a, b) for a, b in zip(watched, train(None), strict=True))
    assert len(events(tmp_path, Wiring)) == 2


@pytest.mark.parametrize(
    ("kind", "differs", "of_step"),
    [
        ("own", False, None),
        ("step before", True, 8),
        ("beginning", True, 0),
        ("average", False, None),
        ("other", True, None),
    ],
)
def test_a_save_of_earlier_values_is_known_from_an_average_and_from_another_model_s(tmp_path, kind, differs, of_step):
    from safetensors.torch import save_file

    def state(of):
        return {name: tensor.detach().clone() for name, tensor in peft.get_peft_model_state_dict(of).items()}

    model = llama()
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    saved = {"beginning": state(model), "average": state(model), "other": state(llama(seed=7))}
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start({})
        watch = log.watch(model, optimizer, verbose=False)
        for step in range(9):
            saved["step before"] = state(model)
            rows = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(step))
            model.train()(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, tensor in state(model).items():
                saved["average"][name].lerp_(tensor, 0.3)
        save_file({**saved, "own": state(model)}[kind], tmp_path / "adapter_model.safetensors")
        watch.saved(tmp_path)
    seen = events(tmp_path, Wiring)[-1].saved
    assert (seen.differs is not None, seen.of_step) == (differs, of_step)


@every(
    ("selected", "active", "norms", "expected"),
    [
        (["default"], ["default", "second"], 0, (["second"], {})),
        (["default"], ["default"], 0, ([], {})),
        (None, ["default", "second"], 3, ([], {"norm": 3})),
    ],
    ids=["one of two", "the one that trains", "norms that PEFT does not save"],
)
def test_a_save_without_all_that_trains_is_named(tmp_path, selected, active, norms, expected):
    model = llama()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(active)
    for tensor in [one for name, one in model.named_parameters() if "norm" in name][:norms]:
        tensor.requires_grad_()
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=selected)
    fit(tmp_path, model, save_strategy="steps", save_steps=6, max_steps=6)
    seen = next(look for look in events(tmp_path, Wiring) if look.phase == "save").saved
    assert (seen.lacking, seen.absent) == expected
    assert seen.adapters == (selected or ["default", "second"])
    assert ("LED412" in alerts(tmp_path)) == (expected != ([], {}))


def test_an_accelerator_whose_prepare_is_forgotten_is_told_if_something_was_asked_of_it(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    for steps in (1, 4):
        kept = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps)
        model = llama()
        with TelemetryWriter(tmp_path / f"{steps}" / "run.jsonl") as log:
            log.run_start({})
            log.watch(model, torch.optim.AdamW(trained(model)), verbose=False)
        told = events(tmp_path / f"{steps}", Wiring)[0]
        del kept
        expected = (["accumulation over 4"], ["model", "optimizer"]) if steps == 4 else ([], [])
        assert (told.asked, told.unprepared) == expected


def test_an_unfrozen_base_stops_the_training_at_its_first_step(tmp_path):
    trainer = fit(tmp_path, unfrozen(llama()), callback=GradienceCallback(verbose=False, stop_on=["WIR170"]))
    assert trainer.state.global_step == 1
    assert alerts(tmp_path)["WIR170"] == 0
    assert "WIR170" in {finding.id for finding in monitor_run(tmp_path).findings}


def test_an_optimizer_of_another_model_is_named(tmp_path):
    fit(tmp_path, llama(seed=1), optimizer=torch.optim.AdamW(trained(llama())))
    assert alerts(tmp_path) == {"WIR172": 0}


def test_an_adapter_around_an_adapter_is_named(tmp_path):
    with pytest.warns(UserWarning, match="PEFT|peft_config"):
        model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    fit(tmp_path, model)
    assert alerts(tmp_path)["WIR174"] == 0


def test_a_trainer_that_evaluates_another_model_is_named(tmp_path):
    other = llama(seed=1)

    class Evaluates(transformers.Trainer):
        def prediction_step(self, model, *given, **more):
            return super().prediction_step(other if more.pop("other", True) else model, *given, **more)

    for folder, kind in ((tmp_path / "a", Evaluates), (tmp_path / "b", transformers.Trainer)):
        sys.modules["hf_training"].trainer(
            folder,
            GradienceCallback(verbose=False),
            evals=sys.modules["hf_training"].sequences(4),
            cls=kind,
            eval_strategy="steps",
            eval_steps=3,
            max_steps=4,
        ).train()
    assert alerts(tmp_path / "a") == {"WIR182": 3}
    assert alerts(tmp_path / "b") == {}


def test_a_loop_in_evaluation_mode_and_what_it_evaluates_are_named(tmp_path):
    model = llama().eval()
    optimizer = torch.optim.AdamW(trained(model))
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start({})
        log.watch(model, optimizer, verbose=False)
        for _ in (1, 2):
            model(input_ids=ROWS, labels=ROWS).loss.backward()
            optimizer.step()
        log.eval(1, split="eval", metrics={"loss": 1.0})  # of a step that is over
        log.eval(2, split="eval", metrics={"loss": 1.0})
    assert alerts(tmp_path) == {"WIR183": 1, "WIR182": 2}


def test_an_adapter_merged_before_a_step_that_fails_is_named(tmp_path):
    model = llama()

    def fails():
        with TelemetryWriter(tmp_path / "run.jsonl") as log:
            log.run_start({})
            log.watch(model, torch.optim.AdamW(trained(model)), verbose=False)
            model.merge_adapter()
            model.train()(input_ids=ROWS, labels=ROWS).loss.backward()

    with pytest.raises(RuntimeError, match="does not require grad"):
        fails()
    assert alerts(tmp_path) == {"WIR174": 1}


@pytest.mark.parametrize(("skip", "expected"), [(8, {}), (0, {"WIR177": 16})])
def test_a_loop_that_begins_its_data_anew_is_named_by_its_rows(tmp_path, skip, expected):
    model = llama()
    optimizer = torch.optim.AdamW(trained(model))
    loader = torch.utils.data.DataLoader(sys.modules["hf_training"].sequences(64), 4)
    run_id = None
    for begin, first in ((0, 0), (8, skip)):
        with TelemetryWriter(tmp_path / "run.jsonl", run_id=run_id) as log:
            log.run_start({}, resumed_from_step=begin or None)
            wires = log.watch(model, optimizer, verbose=False, loader=loader)
            for batch in list(loader)[first:][:8]:
                model.train()(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            wires.saved()
        run_id = log.run_id
    assert alerts(tmp_path) == expected


def test_a_detached_layer_is_named_after_the_first_steps(tmp_path):
    model = llama()
    model.base_model.model.model.layers[0].register_forward_hook(lambda _module, _args, out: out.detach())
    loop(tmp_path, model, torch.optim.AdamW(trained(model)))
    assert alerts(tmp_path) == {"WIR173": 8}


@pytest.mark.parametrize("named", [True, False])
def test_a_loop_of_ones_own_is_watched_through_its_resume(tmp_path, *, named):
    model = llama()
    optimizer = torch.optim.AdamW(trained(model))
    run_id, _ = loop(tmp_path, model, optimizer, save=True)
    again, _ = loop(tmp_path, model, optimizer, begin=9, run_id=run_id if named else None)
    assert again == run_id  # the last run of the log goes on
    assert alerts(tmp_path) == {}
    _, wires = loop(
        tmp_path, llama(seed=2), torch.optim.AdamW(trained(llama())), begin=9, run_id=run_id, stop_on=["WIR172"]
    )
    assert wires.should_stop
    assert {"WIR172", "WIR175"} <= {finding.id for finding in wires.findings}


@pytest.mark.parametrize(("every", "expected"), [(100, {"WIR180": 0}), (9, {})])
def test_a_loop_that_never_steps_is_named_at_its_end(tmp_path, every, expected):
    model = llama()
    optimizer = torch.optim.AdamW(trained(model))
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start({})
        log.watch(model, optimizer, verbose=False)
        for step in range(1, 10):
            (model(input_ids=ROWS, labels=ROWS).loss / every).backward()
            if step % every == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert alerts(tmp_path) == expected


def test_a_schedule_of_0_is_named_after_the_first_steps(tmp_path):
    model = llama()
    optimizer = torch.optim.AdamW(trained(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 3)  # never told of an epoch
    loop(tmp_path, model, optimizer, schedule=schedule)
    assert alerts(tmp_path) == {"WIR180": 8}


def test_a_short_run_that_warms_up_from_0_and_decays_to_0_is_no_finding(tmp_path):
    fit(tmp_path, llama(), max_steps=6, warmup_steps=2, learning_rate=1e-3)
    assert "WIR180" not in alerts(tmp_path)


def test_a_head_that_trains_alone_first_is_no_finding(tmp_path):
    model = sys.modules["hf_training"].distilbert()
    optimizer = torch.optim.AdamW(trained(model))
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.requires_grad = False
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start({})
        assert log.watch(model, optimizer).findings == []


def test_a_copied_or_pickled_model_has_a_hook_that_does_nothing(tmp_path):
    def watching():
        return sum(type(one) in {BatchWatch, PaceMeter} for one in gc.get_objects())

    model = llama()
    with TelemetryWriter(tmp_path / "run.jsonl") as log, BatchWatch(model) as fed:
        pace = PaceMeter(model)
        log.watch(model, torch.optim.AdamW(trained(model)))
        known = watching()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301  # our own
            assert len(twin._forward_pre_hooks) == 3
            twin.train()(input_ids=ROWS)
            assert watching() == known  # neither is copied with the model
        assert fed.batches == 0
        pace.close()
    assert events(tmp_path, StepDigests) == []


@pytest.mark.parametrize("typed", [False, True])
def test_what_is_watched_is_written_before_the_end_of_the_run(tmp_path, *, typed):
    model = llama()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.watch(model, optimizer)
        model.train()(input_ids=ROWS, labels=ROWS).loss.backward()
        optimizer.step()
        log.write(RunEnd(ts=1.0, run_id=log.run_id, step=None, status="ok")) if typed else log.run_end()
    names = [type(event).__name__ for event in TelemetryReader(tmp_path / "run.jsonl")]
    assert names == ["Wiring", "Wiring", "StepDigests", "RunEnd"]


def test_a_failure_to_look_does_not_reach_the_training(tmp_path, monkeypatch):
    def broken(*_args, **_options):
        raise OSError("no")

    monkeypatch.setattr("gradience.hf.watched.look", broken)
    with pytest.warns(RuntimeWarning, match="training goes on: OSError: no"):
        loop(tmp_path, model := llama(), torch.optim.AdamW(trained(model)), steps=1)


def test_an_accelerate_with_other_names_does_not_reach_the_training(tmp_path, monkeypatch):
    kept = type("Accelerator", (), {})()
    monkeypatch.setattr(pytest.importorskip("accelerate"), "Accelerator", type(kept))
    with pytest.warns(RuntimeWarning, match="what Accelerate prepared could not be looked at, training goes on"):
        loop(tmp_path, model := llama(), torch.optim.AdamW(trained(model)), steps=1)
    assert [(told.phase, told.unprepared) for told in events(tmp_path, Wiring)] == [("start", []), ("gradients", [])]


@pytest.mark.parametrize(
    ("odd", "expected"),
    [(torch.empty(2, 0, dtype=torch.int64), (2, 1)), (ROWS.to_sparse(), (0, None))],
    ids=["empty", "sparse"],
)
def test_rows_without_tokens_or_of_no_known_kind_do_not_reach_the_training(tmp_path, odd, expected):
    class Fed(torch.nn.Linear):
        def forward(self, input_ids):
            return self.bias.sum() * len(input_ids)

    model = Fed(2, 2)
    model.peft_config = {"default": peft.LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[3, 4])}
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), digests=False)
        for ids in (ROWS, odd):
            model(input_ids=ids).backward()
    told = events(tmp_path, Wiring)[-1].gradients
    assert (told.rows, told.invoked) == expected


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    ("zeroed", "kept"), [("never", 5), ("after", 0), ("before backward", 0), ("every other step", 3), ("to zeros", 0)]
)
def test_a_gradient_that_is_kept(zeroed: str, kept: int, *, clipped: bool):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen = Leftover(parts_of(layer))
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        for micro in range(2):
            loss = (layer(torch.randn(4, 3, generator=generator)) ** 2).sum()
            if zeroed == "before backward" and micro == 0:
                optimizer.zero_grad()
            loss.backward()
        if clipped:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        optimizer.step()
        seen.step_made()
        if zeroed in {"after", "to zeros"} or (zeroed == "every other step" and step % 2):
            optimizer.zero_grad(set_to_none=zeroed != "to zeros")
    assert (seen.compared, seen.kept) == (5, kept)
    seen.remove()
    layer(torch.ones(1, 3)).sum().backward()
    seen.step_made()
    assert seen.compared == 5


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_cannot_be_copied_ends_the_look_and_not_the_backward_pass(monkeypatch, at):
    calls = iter(range(1, 9))

    def full(gradient):
        if next(calls) == at:
            raise torch.OutOfMemoryError("no memory")
        return gradient.clone()

    monkeypatch.setattr("gradience.hf.leftover._copied", full)
    layer = torch.nn.Linear(3, 2)
    seen = Leftover(parts_of(layer))
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().backward()
        seen.step_made()
    assert layer.bias.grad.tolist() == [2.0, 2.0]
    assert (seen.compared, seen.kept) == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "rate", "unmoved"),
    [("bfloat16", 1e-6, (0.98, 1.0)), ("bfloat16", 1e-2, (0.0, 0.1)), ("float32", 1e-6, None)],
)
def test_steps_that_are_rounded_away_are_counted_bit_by_bit(tmp_path, dtype, rate, unmoved):
    model = llama().to(getattr(torch, dtype))
    loop(tmp_path, model, torch.optim.AdamW(trained(model), lr=rate, weight_decay=0.0))
    (seen,) = (one.gradients for one in events(tmp_path, Wiring) if one.phase == "gradients")
    assert seen.narrow == (0 if unmoved is None else 512)  # four A of 4 x 32; B begins as 0
    assert unmoved is None or unmoved[0] * 512 <= seen.unmoved <= unmoved[1] * 512
    assert ("WIR190" in alerts(tmp_path)) == (unmoved == (0.98, 1.0))
    own = type("Own", (torch.optim.AdamW,), {"__module__": "copies"})
    loop(tmp_path / "own", model, own(trained(model), lr=rate))
    assert all(not one.gradients.narrow for one in events(tmp_path / "own", Wiring) if one.phase == "gradients")


@pytest.mark.parametrize("left_out", [False, True])
def test_a_loop_that_never_sets_gradients_to_zero_is_named(tmp_path, *, left_out):
    model = llama()
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start({})
        optimizer = torch.optim.AdamW(trained(model)[2:] if left_out else trained(model))
        log.watch(model, optimizer, verbose=False)
        for step in range(1, 10):
            loss = model(input_ids=ROWS, labels=ROWS).loss
            loss.backward()
            optimizer.step()
            if left_out:
                optimizer.zero_grad()  # not those that it does not hold, which are the first and no larger
            log.train_step(step, loss=loss.item())
    assert alerts(tmp_path) == {**({"WIR172": 0} if left_out else {"WIR185": 8}), "FED226": 9}
