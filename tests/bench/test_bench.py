"""The commands, end to end, on models that have learnt something."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jsonschema
import msgspec
import pytest
import torch
from bench_rows import rows_of, write_rows
from safetensors.numpy import load_file, save_file

from gradience.cli.main import main
from gradience.errors import GradienceError, OutputError
from gradience.schema.compare import BenchReport
from gradience.schema.export import json_schema
from gradience.verbs.bench.options import BenchOptions
from gradience.verbs.bench.run import bench_adapter, bench_merge
from gradience.verbs.bench.store import opened_store


def row(report, name, task=0):
    return next(c for c in report.candidates if c.name == name).results[task]


def quietly(*arguments):
    return main(["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def classified(classifier, tmp_path_factory):
    """A bench of the classifier."""
    out = tmp_path_factory.mktemp("bench") / "out"
    options = BenchOptions(base=classifier.base, tolerance="10%")
    return bench_adapter(classifier.adapter, out, data=classifier.data, candidates=["svd:4", "svd:1"], options=options)


def logits(base, adapter, texts, kind, **options):
    import transformers
    from peft import PeftModel

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(base, **options)
        model = PeftModel.from_pretrained(model, adapter).eval()
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            found.append((ids["input_ids"][0], model(**ids).logits[0].double()))
    return found


def test_accuracy_kl_and_flips_are_those_of_transformers_and_torch(classifier, classified):
    rows = [json.loads(line) for line in classifier.data.read_text().splitlines()]
    folders = [classifier.adapter, next(c.folder for c in classified.candidates if c.name == "svd:1")]
    texts = [row["text"] for row in rows]
    found = (logits(classifier.base, f, texts, "SequenceClassification", num_labels=3) for f in folders)
    full, small = (torch.stack([x for _, x in some]) for some in found)
    labels = torch.tensor([r["label"] for r in rows])
    assert classified.tasks[0].score == pytest.approx((full.argmax(-1) == labels).double().mean())
    found = row(classified, "svd:1")
    assert found.score == pytest.approx((small.argmax(-1) == labels).double().mean())
    assert found.harm == pytest.approx(classified.tasks[0].score - found.score)
    assert found.flips == pytest.approx((small.argmax(-1) != full.argmax(-1)).double().mean())
    kl = torch.nn.functional.kl_div(small.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(kl.item(), rel=1e-4)


def test_the_adapter_is_told_from_the_base_and_from_its_shuffled_self(classified):
    assert classified.tasks[0].has_contrast is True
    assert classified.tasks[0].score > 0.8
    assert all(row(classified, name).score < 0.6 for name in ("base", "shuffled"))
    assert classified.verdict.state in {"holds", "not_decided"}
    assert [c.name for c in classified.candidates] == ["full", "svd:4", "svd:1", "shuffled", "base"]
    assert [c.params for c in classified.candidates][1] * 2 == classified.candidates[0].params


def test_the_document_follows_its_schema_and_is_kept(classified):
    document = json.loads(classified.to_json())
    jsonschema.Draft202012Validator(json_schema("bench")).validate(document)
    kept = msgspec.json.decode((Path(classified.out) / "bench.json").read_bytes(), type=BenchReport)
    assert kept == classified


@pytest.mark.parametrize("metric", ["loss", "accuracy", "exact-match"])
def test_the_metrics_of_a_causal_model_are_those_of_its_completions_tokens(llama, tmp_path, metric):
    rows = {line["prompt"] + line["completion"]: line for line in map(json.loads, llama.data.read_text().splitlines())}
    report = bench_adapter(
        llama.adapter,
        tmp_path / "out",
        data=llama.data,
        candidates=[],
        options=BenchOptions(base=llama.base, metric=metric),
    )
    losses, hits = [], []
    for text, (ids, out) in zip(rows, logits(llama.base, llama.adapter, rows, "CausalLM"), strict=True):
        first = len(rows[text]["prompt"].split()) + 1  # after [CLS]
        logprobs, target = out[first - 1 : -1].log_softmax(-1), ids[first:]
        losses.append(-logprobs.gather(1, target[:, None])[:, 0])
        hits.append(logprobs.argmax(-1) == target)
    expected = {
        "loss": torch.cat(losses).mean(),
        "accuracy": torch.cat(hits).double().mean(),
        "exact-match": torch.stack([h.all() for h in hits]).double().mean(),
    }[metric]
    assert report.tasks[0].score == pytest.approx(float(expected), rel=1e-5)


COUNTING = """
import json, os, pathlib, sys
adapter, log, fail = sys.argv[1:4]
names = [line for line in open(log)] if os.path.exists(log) else []
with open(log, "a") as file:
    file.write(os.path.basename(adapter) + chr(10))
if len(names) == int(fail):
    if sys.argv[4] == "die":
        sys.exit("the evaluator has died")
    if sys.argv[4] == "wait":
        import time
        parent = os.getppid()
        while os.getppid() == parent:  # until the bench is killed
            time.sleep(0.05)
    sys.exit(0)
config = json.load(open(os.path.join(adapter, "adapter_config.json")))
good = 0 if os.path.basename(adapter).startswith(("shuffled", "base")) else 90
print(json.dumps([1] * good + [0] * (100 - good)))
"""


def counting(folder, fail=-1, how="die"):
    """A command that logs each call, scores 100 examples, and at one of its calls dies, waits, or prints nothing."""
    script = folder / "evaluate.py"
    script.write_text(COUNTING)
    words = [sys.executable, str(script), "{adapter}", str(folder / "log"), str(fail), how]
    return " ".join(word if word == "{adapter}" else shlex.quote(word) for word in words)


def calls(folder):
    return (folder / "log").read_text().split()


def test_a_command_scores_every_candidate_once_and_a_second_run_none(classifier, tmp_path, capsys):
    command = counting(tmp_path)
    arguments = (classifier.adapter, "--metric", command, "--out", tmp_path / "out", "--candidates", "svd:2", "--json")
    assert quietly(*arguments, "--tolerance", "5%") == 0
    first = json.loads(capsys.readouterr().out)
    assert len(calls(tmp_path)) == first["evaluated"] == 4
    assert first["verdict"]["candidate"] == "svd:2"
    assert quietly(*arguments, "--tolerance", "5%") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["evaluated"], again["reused"], len(calls(tmp_path))) == (0, 4, 4)
    assert again["candidates"] == first["candidates"]
    assert quietly(*arguments, "--tolerance", "1%") == 3  # judged anew, of the same scores
    assert len(calls(tmp_path)) == 4
    write_rows(tmp_path / "new.jsonl", rows_of(3, 0))
    assert quietly(*arguments, "--tolerance", "5%", "--data", tmp_path / "new.jsonl") == 0
    assert len(calls(tmp_path)) == 8  # other data: everything again


@pytest.mark.parametrize(
    ("how", "says"), [("die", "failed with exit code 1: the evaluator has died"), ("silent", "printed nothing")]
)
def test_an_evaluator_that_fails_is_one_line_and_a_two_and_what_was_scored_is_kept(
    classifier, tmp_path, capsys, how, says
):
    arguments = (classifier.adapter, "--out", tmp_path / "out", "--candidates", "svd:2", "--tolerance", "5%")
    assert quietly(*arguments, "--metric", counting(tmp_path, 2, how)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert len(list((tmp_path / "out" / "evaluations").iterdir())) == 2


@pytest.mark.slow  # scores many candidates
def test_a_run_that_was_killed_goes_on_where_it_stopped(classifier, tmp_path):
    command = counting(tmp_path, 2, "wait")
    arguments = ["bench", str(classifier.adapter), "--metric", command, "--out", str(tmp_path / "out")]
    arguments += ["--candidates", "svd:2", "--tolerance", "5%", "--json"]
    with subprocess.Popen([sys.executable, "-m", "gradience", *arguments], start_new_session=True) as process:
        until = time.monotonic() + 300
        while not ((tmp_path / "log").is_file() and len(calls(tmp_path)) == 3) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert len(list((tmp_path / "out" / "evaluations").iterdir())) == 2
    done = subprocess.run([sys.executable, "-m", "gradience", *arguments], capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert (document["evaluated"], document["reused"]) == (2, 2)
    assert calls(tmp_path)[2] == calls(tmp_path)[3]  # the one that was cut short is run again, and no other
    assert len(calls(tmp_path)) == 5


def test_data_of_one_class_and_labels_that_are_none_are_refused(classifier, tmp_path, capsys):
    one = write_rows(tmp_path / "one.jsonl", [row for row in rows_of(60, 1) if row["label"] == 1])
    odd = write_rows(tmp_path / "odd.jsonl", [{"text": "w1 w2", "label": 3}])
    for file, says in ((one, "one class only"), (odd, "expected a number from 0 to 2")):
        assert quietly(classifier.adapter, "--base", classifier.base, "--data", file, "--out", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--candidates", "svd:x"], "'svd:x': 'x' is not a number"),
        (["--candidates", "half"], "'half' is not a candidate"),
        (["--candidates", "kl:.01"], "needs --base and --calibration-data (give the base, and other rows than "),
        (["--tolerance", "some"], "the tolerance is 'some'"),
        (["--metric", "run-me"], "has no {adapter}"),
        (["--metric", "accuracy"], "needs --base and --data"),
        (["--calibration-data", "@data"], "is what candidates are judged by"),
        (["--retrain", "train {r}"], "--candidates adapter:FOLDER"),
        (["--metric", "echo 0.5 {adapter}"], "expected a list of one number per example"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_an_unusable_option_is_one_line_and_a_two(classifier, tmp_path, capsys, arguments, says):
    known = [] if "accuracy" in arguments else ["--base", classifier.base, "--data", classifier.data]
    given = [classifier.data if word == "@data" else word for word in arguments]
    assert quietly(classifier.adapter, *known, "--out", tmp_path / "out", *given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone_and_one_in_use_is_not_shared(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="no folder of gradience bench"), opened_store(tmp_path / "mine", []):
        pass
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with opened_store(tmp_path / "out", []), pytest.raises(OutputError, match="another process"):  # noqa: SIM117
        with opened_store(tmp_path / "out", []):
            pass


def test_merges_are_judged_on_each_adapters_own_data_with_its_own_head(classifier, tmp_path):
    other, data = tmp_path / "other", write_rows(tmp_path / "held.jsonl", rows_of(60, seed=999))
    bench = bench_adapter(
        classifier.adapter, tmp_path / "first", data=data, candidates=["svd:4"],
        options=BenchOptions(base=classifier.base),
    )  # fmt: skip
    Path(next(c.folder for c in bench.candidates if c.name == "svd:4")).rename(other)
    tensors = load_file(weights := other / "adapter_model.safetensors")
    save_file({name: one if "lora_" in name else 1.5 * one for name, one in tensors.items()}, weights)
    report = bench_merge(
        [classifier.adapter, other],
        tmp_path / "out",
        data=[data, data],
        methods=["linear"],
        weights=[[0.5, 0.5], [0.0, 1.0], [0.5, 0.0]],
        options=BenchOptions(base=classifier.base, tolerance="10%"),
    )
    assert [task.reference for task in report.tasks] == ["adapter alone", "other alone"]
    one, two = (next(c for c in report.candidates if c.name == n) for n in ("linear:0.5,0.5", "linear:0,1"))
    assert [r.task for r in one.results] == ["adapter", "other"]
    assert two.results[1].harm == pytest.approx(0.0, abs=1e-9)  # weight 1 of the second is the second
    assert two.results[1].kl < 1e-6
    assert two.results[0].kl > 1e-4
    third = next(c for c in report.candidates if c.name == "linear:0.5,0")
    alone = next(c for c in report.candidates if c.name == "alone:0.5")
    assert (alone.role, alone.outcome, [r.task for r in alone.results]) == ("anchor", "anchor", ["adapter", "other"])
    # Merged with nothing, an adapter is itself at its weight: all that it loses is dilution
    assert third.results[0].harm == third.results[0].diluted == alone.results[0].harm
    assert third.results[0].kl == pytest.approx(alone.results[0].kl, rel=1e-3)
    assert alone.results[0].kl > 1e-3
    assert [r.diluted for r in one.results] == [r.harm for r in alone.results]
    assert [r.diluted for r in two.results] == [row(report, "base").harm, 0.0]
    assert third.results[1].diluted == row(report, "base", 1).harm
    assert row(report, "shuffled").diluted is row(report, "base").diluted is None
    assert {c.name for c in report.candidates if c.role == "anchor"} == {"alone:0.5", "base", "shuffled"}
    with pytest.raises(GradienceError, match="1 data files for 2 adapters"):
        bench_merge([classifier.adapter, other], tmp_path / "two", data=[classifier.data])


def test_what_the_mean_is_over_is_beside_the_loss_and_the_verdict_in_words(llama, tmp_path, capsys):
    code = quietly(
        llama.adapter, "--base", llama.base, "--data", llama.data, "--out", tmp_path / "out", "--candidates", "svd:1"
    )
    out = capsys.readouterr().out
    assert code == 1
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    score = document["tasks"][0]["score"]
    assert f"full {score:.4g}, tolerance" in out
    assert "Verdict: NONE: no candidate holds: all lose more than the tolerance." in out
    assert "loss (lower is better), mean over examples" in out


def test_with_a_longest_row_the_mean_is_over_tokens_and_a_row_of_that_length_is_allowed_for(llama, tmp_path, capsys):
    arguments = (llama.adapter, "--base", llama.base, "--data", llama.data, "--out", tmp_path / "out")
    code = quietly(*arguments, "--candidates", "svd:1", "--tolerance", "500%", "--max-length", "4096")
    out = capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    score, result = document["tasks"][0]["score"], document["candidates"][1]["results"][0]
    assert code == 3
    assert result["outcome"] == "open"
    assert result["harm"] < document["tasks"][0]["margin"]
    assert result["needed"] > 20 * document["tasks"][0]["n"]
    assert f"full {score:.4g} (perplexity {math.exp(score):.4g})" in out
    assert "loss (lower is better), mean over tokens" in out
    assert "a row may have 4,096 tokens (--max-length), and the longest here has" in " ".join(out.split())


def test_a_size_by_kl_is_calibrated_on_inputs_of_its_own(classifier, tmp_path):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in rows_of(300, 5)])
    report = bench_adapter(
        classifier.adapter,
        tmp_path / "out",
        data=classifier.data,
        candidates=["kl:.05"],
        calibration_data=texts,
        options=BenchOptions(base=classifier.base),
    )
    found = next(c for c in report.candidates if c.name == "kl:.05")
    assert 0 < found.params < report.candidates[0].params
    assert found.results[0].kl < 0.1  # measured on other inputs than it was chosen by


def test_a_key_in_a_command_is_in_no_file_of_the_folder(classifier, tmp_path, capsys):
    secret = "hf_" + "aBcDeFgHiJ" * 3
    command = f"{counting(tmp_path)} --token {secret}"
    quietly(classifier.adapter, "--metric", command, "--out", tmp_path / "out", "--candidates", "svd:2", "--json")
    assert secret not in capsys.readouterr().out
    files = [path for path in (tmp_path / "out").rglob("*.json") if path.is_file()]
    assert len(files) > 4
    assert not any(secret in path.read_text() for path in files)


def test_a_command_that_names_its_seed_gets_it(classifier, tmp_path):
    program = shlex.join([sys.executable, "-c", "import sys; print([int(sys.argv[2])] * 3)"])
    options = BenchOptions(metric=f"{program} {{adapter}} {{seed}}", seed=5, base="someone/large-model")
    report = bench_adapter(classifier.adapter, tmp_path / "out", candidates=[], options=options)
    assert (report.tasks[0].n, report.tasks[0].score) == (3, 5.0)


@pytest.mark.slow  # scores many candidates
def test_a_base_that_only_the_evaluator_knows_needs_no_files(classifier, tmp_path):
    arguments = (classifier.adapter, "--metric", counting(tmp_path), "--out", tmp_path / "out", "--candidates", "svd:2")
    assert quietly(*arguments, "--base", "someone/large-model", "--tolerance", "5%") == 0
    assert quietly(*arguments, "--base", "someone/other-model", "--tolerance", "5%") == 0
    assert len(calls(tmp_path)) == 8
