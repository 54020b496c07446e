"""An adapter that PEFT saved never disagrees with the config it was trained by, and does with another one."""

from __future__ import annotations

import msgspec
import pytest
from tables import every

from gradience import audit_adapter, check_config
from gradience.rules.joins.symptoms import Stated, disagreements, recorded_disagreements
from gradience.schema.events import Metrics
from gradience.telemetry.series import RunSeries

pytestmark = [  # what PEFT says of two of the kinds below
    pytest.mark.filterwarnings(r"ignore:The following rank_pattern keys:RuntimeWarning:peft\.tuners\.tuners_utils"),
    pytest.mark.filterwarnings(r"ignore:PiSSA changes the base weights:UserWarning:peft\.peft_model"),
]

KINDS = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "an expression": {"target_modules": r".*\.layers\.0\..*_proj"},
    "a full path": {"target_modules": ["model.layers.1.mlp.up_proj"]},
    "rank pattern": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2, r"layers\.1\.v_proj": 6}},
    "alpha pattern": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3}},
    "rsLoRA and DoRA": {"target_modules": ["o_proj"], "use_rslora": True, "use_dora": True},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "PiSSA": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def saved(training, tmp_path_factory):
    """A function that returns (what PEFT was told, the audit of what it saved)."""

    def save(kind):
        folder = tmp_path_factory.mktemp("peft")
        model = training.llama(**KINDS[kind])
        told = check_config(peft=model.peft_config["default"]).config.lora
        model.save_pretrained(folder / "adapter")
        return told, audit_adapter(folder / "adapter")

    return save


@every("kind", KINDS)
def test_the_config_that_peft_was_given_is_that_of_what_it_saves(saved, kind):
    told, audit = saved(kind)
    assert told.r == 4
    assert disagreements([Stated("the config", told)], audit) == []


def test_a_conversion_that_doubles_rank_and_alpha_is_no_other_run(training, tmp_path):
    model = training.llama(target_modules=["q_proj"], init_lora_weights="pissa")
    told = check_config(peft=model.peft_config["default"]).config.lora
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    audit = audit_adapter(tmp_path / "out")
    assert {module.r for module in audit.modules} == {8}
    assert disagreements([Stated("the config", told)], audit) == []
    plain = msgspec.structs.replace(told, init="true")
    assert disagreements([Stated("the config", plain)], audit)


@every(
    ("counts", "other"),
    [((4, 1024), False), ((4, 2048), False), ((8, 1024), False), ((8, 2048), True), ((None, None), False)],
)
def test_a_recorded_audit_is_another_adapter_s_where_all_counts_differ(saved, counts, other):
    audit = saved("plain")[1]
    assert (audit.summary.n_layers, audit.summary.total_lora_params) == (4, 1024)
    recorded = {key: n for key, n in zip(("n_layers", "total_lora_params"), counts, strict=True) if n is not None}
    run = RunSeries("r")
    run.latest_metrics["lora_audit"] = Metrics(ts=0.0, run_id="r", step=1, kind="lora_audit", metrics=recorded)
    assert bool(recorded_disagreements(run, audit)) is other
