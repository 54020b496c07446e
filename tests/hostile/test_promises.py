"""Each row of docs/limits.md, and each sentence of it and of reliability.md that promises something, has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tables import every

STATED = "io/test_numbers_stated.py::test_every_number_under_a_name_is_in_a_table"  # the number itself
STRANGERS = "data/test_strangers.py::test_"
FOREIGN = "hostile/test_foreign_logs.py::test_"
VALUES = "telemetry/test_value_limits.py::test_"
OUTPUT = "hostile/test_output.py::test_"

ROWS = {  # the first cell of a row of limits.md, and the beginning of the test that holds it
    "a receipt": "receipt/test_receipt.py::test_long_rows_stay_within_the_size",
    "an answer of a server": "receipt/test_answers.py::test_an_answer_beyond_the_limit_is_refused",
    "values in lists and mappings of one event": VALUES + "an_event_has_ten_thousand_values",
    "elements of one array or tensor in an event": VALUES + "an_array_has_4096_values",
    "levels of nesting in an event": VALUES + "values_are_nested_64_levels_deep",
    "an integer that is written whole": VALUES + "an_integer_has_4096_bits",
    "a log that is written": "hostile/test_recorder.py::test_a_pipe_as_the_log_does_not_hold_training_up",
    "time until a vanished log is noticed": "telemetry/test_lost.py::test_a_log_that_vanishes_twice_loses",
    "text that is scanned for secrets": "telemetry/test_hidden_places.py::test_a_long_name_is_judged_by_its_last_128",
    "a key that is scanned": "telemetry/test_redact.py::test_of_a_key_of_1024_characters_nothing_is_left",
    "an error's line": FOREIGN + "a_line_of_error_has_a_length_that_fits_a_screen",
    "time for trackio to read a project": STATED,
    "files of one run in MLflow's folder": STATED,
    "a number in an event file": FOREIGN + "a_tensor_that_lies_about_its_shape",
    "a table's header": FOREIGN + "a_header_of_many_columns_is_read",
    "output of a command of `bench`": "bench/test_command.py::test_a_command_that_prints_without_end_is_ended",
    "time of a command of `bench`": "bench/test_command.py::test_a_command_that_takes_too_long_ends_with_all",
    "a score of a command of `bench`, in size": "bench/test_command.py::test_a_score_beyond_all_measures_is_infinite",
    "a kept evaluation": "bench/test_bench.py::test_a_damaged_evaluation_is_run_again",
    "a row of a data set": STRANGERS + "long_lines_of_a_csv_are_faults_and_the_others_are_read",
    "a line of a data set without an end": STRANGERS + "a_line_that_never_ends_is_an_error",
    "a data set in one JSON document": STRANGERS + "more_values_than_the_limit_are_not_decoded",
    "rows of a Parquet or Arrow file": STATED,
    "memory of the process that reads a tokenizer, a template, Parquet or Arrow": (
        "io/test_confined.py::test_what_goes_wrong_is_said_and_ends_nothing_else"
    ),
    "its processor time": STRANGERS + "a_template_that_loops_ends_with_its_time",
    "a token id or label": STRANGERS + "numbers_of_no_size_that_a_data_set_has",
    "a model's or tokenizer's JSON": "io/test_pretrained.py::test_a_folder_with_a_pipe_a_device_or_a_huge_json",
    "a file of a command of `bench` that is hashed": (
        "bench/test_kept.py::test_a_command_has_another_digest_once_a_file_that_it_names_was_edited"
    ),
    "files of a data set's folder that are looked at": STATED,
    "a chat template": STATED,
    "a ref of the hub's cache": "hostile/test_special_files.py::test_a_ref_that_names_no_revision",
    "anything that is opened": "hostile/test_special_files.py::test_only_regular_files_of_a_sensible_size_are_read",
    "`adapter_config.json`": "hostile/test_special_files.py::test_a_config_over_the_limit_is_refused",
    "a config of a run": "configs/test_reading.py::test_large_files_are_refused_before_they_are_parsed",
    "a model's `config.json`": STATED,
    "the index of a sharded checkpoint": STATED,
    "`gradience.toml`, `pyproject.toml` with our table": (
        "hostile/test_bombs.py::test_a_settings_file_in_the_working_folder_costs_no_more_than_its_size"
    ),
    "a source to import": FOREIGN + "a_source_of_too_many_rows_names_the_limit",
    "a line of a `run.jsonl`": "telemetry/test_line_faults.py::test_a_line_without_end_is_measured_up_to_a_limit",
    "nesting of JSON and YAML": "hostile/test_depth.py::test_a_deep_document_is_one_line_of_error",
    "inputs to calibrate on": STATED,
    "texts to measure a drift on": "drift/test_drift.py::test_what_cannot_be_measured_is_refused",
    "a number in YAML": "hostile/test_depth.py::test_a_number_of_thousands_of_digits_in_yaml",
    "a tensor's name": "io/test_reading.py::test_a_name_is_bounded_in_length_and_in_parts",
    "alpha, in size": STATED,
    "an entry of an update that is rewritten": "convert/test_said.py::test_numbers_that_are_not_finite_or",
    "rank": "hostile/test_bombs.py::test_work_and_memory_are_bounded_by_the_least_of_rows_columns_and_rank",
    "dtypes of a tensor that is copied": "hostile/test_carried_over.py::test_",
    "0": OUTPUT + "a_reader_that_went_away_is_no_error",
    "1": "cli/test_main.py::test_fail_on_turns_findings_into_a_one",
    "2": OUTPUT + "a_full_disk_leaves_nothing_half_written_and_is_one_line_of_error",
    "3": "verify_merge/test_verify_merge.py::test_the_command_prints_verdict_and_table_and_its_code_says_the_verdict",
    "70": "hostile/test_last_resort.py::test_a_bug_of_ours_has_an_exit_code_of_its_own",
    "130, 143": OUTPUT + "a_signal_at_any_write_leaves_the_whole_or_nothing",
}
SENTENCES = {  # the beginning of a sentence that promises something, the same
    "it has the shape of a known token": "telemetry/test_alternatives.py::test_every_form_of_a_secret_is_known",
    "it stands under or after a name that says so": "telemetry/test_names.py::test_a_key_of_these_is_a_secret",
    "it stands in a place for secrets": "telemetry/test_secret_bounds.py::test_a_secret_is_known_by_its_place",
    "This holds in shell lines": "telemetry/test_alternatives.py::test_a_secret_in_a_command_is_hidden",
    "A run of 24 letters and digits": "hostile/test_field.py::test_97_in_100_secrets_are_hidden",
    "A name put together from words": "hostile/test_field.py::test_97_in_100_secrets_are_hidden_and_at_most_2_in_100",
    "So is what stands for a secret": "telemetry/test_names.py::test_what_stands_for_a_secret_is_none",
    "`--force` replaces an adapter and nothing else": "hostile/test_force.py::test_force_replaces_a_folder_that_is",
    "If a folder holds anything more": "hostile/test_force.py::test_force_refuses_a_folder_that_holds_more",
    "The old adapter stays in place": "hostile/test_force.py::test_what_cannot_be_written_leaves_the_old_adapter",
    "Characters that stdout's encoding lacks": OUTPUT + "a_stdout_that_has_no_such_letters_gets_the_report",
    "In JSON, SARIF and the log, characters": OUTPUT + "no_control_character_of_an_input_reaches_an_output",
    "A byte of a path that is not UTF-8": OUTPUT + "a_path_that_is_not_utf_8_is_shown_and_stays_json",
    "nothing that was acknowledged may be missing": "telemetry/test_processes.py::test_every_event_whose_write",
    "If the folder or the log is removed": "telemetry/test_lost.py::test_events_that_vanished_and_those_refused",
    "whose weights stay bit-identical": "hf/test_neutral.py::test_",
    "No signal is raised while a module is imported": OUTPUT + "an_interrupt_while_imports_are_going_on_is_one_line",
    "A signal that was turned into another error": "io/test_interrupt.py::test_a_signal_ends_the_command",
    "A command that a signal ended leaves": OUTPUT + "an_interrupt_after_the_output_is_whole",
    "`gradience report` makes a page": "hostile/test_report.py::test_a_long_run_of_extreme_values_takes_seconds",
    "Numbers are clipped to 1e300": "hostile/test_report.py::test_a_page_of_extreme_values_is_drawn_soon",
}
PROMISES = {**ROWS, **SENTENCES}


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    names = ("limits.md", "reliability.md", "evidence/reliability.md")
    return {name: (root / "docs" / name).read_text(encoding="utf-8") for name in names}


def test_each_row_of_limits_is_a_promise_with_its_test(pages: dict[str, str]) -> None:
    cells = re.findall(r"^\| ([^|]+?) \|(?! reason)(?!---)", pages["limits.md"], re.MULTILINE)
    heads = {"limit", "file or part", "exit code"}
    assert sorted(set(cells) - heads) == sorted(ROWS)


@every("promise", PROMISES)
def test_a_promise_is_on_a_page_and_has_its_test(pages: dict[str, str], root: Path, promise: str) -> None:
    text = re.sub(r"\s+", " ", "".join(pages.values()))
    assert promise.lower() in text.lower()
    file, _, name = PROMISES[promise].partition("::")
    assert f"def {name}" in (root / "tests" / file).read_text(encoding="utf-8")


def test_the_threat_model_names_tests_and_modules_that_are_there(root: Path) -> None:
    page = (root / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:io|telemetry)\.[a-z]+)`", page))
    assert named == {"io.reading", "io.pretrained", "io.confined", "telemetry.secrets"}
    assert all((root / "src" / "gradience" / f"{name.replace('.', '/')}.py").is_file() for name in named)
