"""The sentences of docs/limits.md and docs/reliability.md that promise something, each as a test or with its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tables import every

PROMISES = {  # a sentence of a page, and the beginning of the test that holds it
    "anything that is opened": "hostile/test_special_files.py::test_only_regular_files_of_a_sensible_size_are_read",
    "a log that is written": "hostile/test_recorder.py",
    "a row of a data set": "data/test_strangers.py::test_long_lines_of_a_csv_are_faults_and_the_others_are_read",
    "a line of a data set without an end": "data/test_strangers.py::test_a_line_that_never_ends_is_an_error",
    "a data set in one JSON document": "data/test_strangers.py::test_more_values_than_the_limit_are_not_decoded",
    "memory of the process that reads": "io/test_confined.py::test_what_goes_wrong_is_said_and_ends_nothing_else",
    "its processor time": "data/test_strangers.py::test_a_template_that_loops_ends_with_its_time",
    "a token id or label": "data/test_strangers.py::test_numbers_of_no_size_that_a_data_set_has",
    "a model's or tokenizer's JSON": "io/test_pretrained.py::test_a_folder_with_a_pipe_a_device_or_a_huge_json",
    "a file of a command of `bench` that is hashed": (
        "bench/test_kept.py::test_a_command_has_another_digest_once_a_file_that_it_names_was_edited"
    ),
    "It has the shape of a known token": "telemetry/test_secret_bounds.py",
    "A run of 24 letters and digits": "hostile/test_field.py::test_97_in_100_secrets_are_hidden",
    "`--force` replaces an adapter and nothing else": "hostile/test_force.py",
    "done; also if the reader of stdout closed it": "hostile/test_output.py",
    "ended by SIGINT or SIGTERM": "hostile/test_output.py::test_a_signal_at_any_write_leaves_the_whole_or_nothing",
    "A byte of a path that is not UTF-8": "hostile/test_output.py",
    "No signal is raised while a module is imported": "io/test_interrupt.py",
    "whose weights stay bit-identical": "hf/test_neutral.py",
    "If the folder or the log is removed": "hf/test_failures.py",
}


@pytest.fixture(scope="module")
def pages(root: Path) -> str:
    text = "".join((root / "docs" / name).read_text(encoding="utf-8") for name in ("limits.md", "reliability.md"))
    return re.sub(r"\s+", " ", text)


@every("promise", PROMISES)
def test_a_promise_is_on_a_page_and_has_its_test(pages: str, root: Path, promise: str) -> None:
    assert promise.lower() in pages.lower()
    file, _, name = PROMISES[promise].partition("::")
    assert f"def {name}" in (root / "tests" / file).read_text(encoding="utf-8")


def test_the_threat_model_names_tests_and_modules_that_are_there(root: Path) -> None:
    page = (root / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:io|telemetry)\.[a-z]+)`", page))
    assert named == {"io.reading", "io.pretrained", "io.confined", "telemetry.secrets"}
    assert all((root / "src" / "gradience" / f"{name.replace('.', '/')}.py").is_file() for name in named)
