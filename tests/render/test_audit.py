"""The text: the seed's lines as they are, findings and verdict on top, the rest on request."""

from __future__ import annotations

import msgspec
from tables import every

from gradience.blocks.text import printed
from gradience.rules import judge
from gradience.rules.weights import health
from gradience.rules.weights.ranks import candidates, disagreements, rank_pattern, rank_rules, suggest
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema.audit import (
    AUDIT_SCHEMA_ID,
    AuditReport,
    AuditSummary,
    GroupSummary,
    LayerSummary,
    LedgerEntry,
    ModuleAudit,
)
from gradience.verbs.audit import maps
from gradience.verbs.audit.view import View, audit_text

ERRORS = {"1": 0.5, "2": 0.3, "4": 0.1, "6": 0.05, "7": 0.02}


def heatmap(*given, **keywords) -> list[str]:
    return list(printed([maps.heatmap(*given, **keywords)]))


def module(layer: int, kind: str = "self_attn.q_proj", **fields) -> ModuleAudit:
    given = {
        "module_type": "attn", "layer": layer, "shape": [768, 768], "r": 8, "alpha": 16.0, "scaling": 2.0,
        "params": 12288, "stable_rank": 1.0 + layer / 10, "utilization": (1.0 + layer / 10) / 8,
        "effective_rank": 6.0, "energy_rank_90": 2, "knee_rank": 1, "null_stable_rank": 7.3, "spectral_norm": 1.0,
        "frobenius_norm": 1.0 + layer, "energy_share": 0.1, "relative_errors": ERRORS,
        **fields,
    }  # fmt: skip
    return ModuleAudit(name=f"model.layers.{layer}.{kind}", **given)


def report(modules=None, **fields) -> AuditReport:
    rows = [module(i) for i in range(12)] if modules is None else modules
    ok = [m for m in rows if m.state == "ok"]
    given = {
        "peft_dir": "runs/toy/peft",
        "config_path": "runs/toy/peft/adapter_config.json",
        "weights_path": "runs/toy/peft/adapter_model.safetensors",
        "format": "peft",
        "health": health(rows),
        "summary": AuditSummary(
            total_lora_params=294912, n_layers=24, stable_rank_mean=1.47, utilization_mean=0.184,
            effective_rank_mean=6.0, energy_rank_90_p50=2.5, energy_rank_90_p90=6.0, energy_concentration=0.1,
            null_stable_rank_mean=7.3, by_type={"attn": GroupSummary(n=24, params=294912, energy_share=1.0)},
        ),
        "modules": rows,
        "suggested": {"median": suggest(ok, 2), "p90": suggest(ok, 4)},
        "candidates": candidates(ok),
        "rank_rules": rank_rules(ok),
        "rank_disagreements": disagreements(ok),
        "layers": [LayerSummary(layer=i, n=1, energy_share=1 / 12) for i in range(12)],
        "ledger": [LedgerEntry(role="lora_pair", tensors=48, params=294912, bytes=1179648, share=1.0)],
        **fields,
    }  # fmt: skip
    return AuditReport(schema=AUDIT_SCHEMA_ID, **given)


SEED = """\
========================================================================
GRADIENCE LoRA AUDIT
========================================================================
PEFT dir: runs/toy/peft
Config:   runs/toy/peft/adapter_config.json
Weights:  runs/toy/peft/adapter_model.safetensors
Summary:
  LoRA params: 294.9K
  Layers:      24
  Stable rank (mean):    1.47
  Utilization (mean):    18.4%
  Energy rank k@90% (p50/p90): 2.5/6
Most wasteful layers (lowest utilization, top 3):
  01. attn r=8   util=12.5%  sr=1.00  k@90%=2  model.layers.0.self_attn.q_proj"""


def test_the_seeds_lines_stand_verbatim_and_in_order():
    lines = audit_text(report(), View(top_wasteful=3)).splitlines()
    places = [lines.index(line) for line in SEED.splitlines()[3:]]
    assert lines[:3] == SEED.splitlines()[:3]
    assert places == sorted(places)


def noted():
    """The reading of these modules: a low utilization."""
    return judge(WEIGHTS_RULES, report([module(i, alpha=8.0) for i in range(12)])).told


RESIZE = "Next: gradience resize runs/toy/peft"


def test_the_default_report_fits_a_screen_with_the_verdict_first_and_the_next_step_last():
    lines = audit_text(report(readings=noted(), task_type="CAUSAL_LM")).splitlines()
    assert len(lines) <= 33
    assert max(map(len, [line for line in lines if not line.startswith("Next: ")])) <= 100
    assert lines[7] == "Verdict: TRAINED (all 12 modules carry a finite, non-zero update)"
    assert lines[-4:] == [
        "--verbose adds: every rank and layer",
        "Weights cannot show a layer dropped, doubled, swapped or negated, or another alpha: evaluate.",
        f"{RESIZE} --base MODEL --data TEXTS --kl .003 --out runs/toy/peft-smaller",
        "    Replace MODEL by the base model and TEXTS by a file of rows.",
    ]
    place = lines.index("Suggested rank (now 8): 2 (most modules; saves 0.00 MB) or 4 (the tail; saves 0.00 MB)")
    assert lines[place + 1] == "  To compress to after training, not to train with; verify with eval."


def test_the_next_step_is_a_resize_only_where_that_makes_sense():
    def last(**fields):
        *_, before, line = audit_text(report(**{"readings": noted(), **fields})).splitlines()
        return before if line.startswith("    Replace") else line

    warning = msgspec.structs.replace(noted()[0], severity="warning")
    present = {"suggested": {"median": suggest([module(0)], 8)}}
    assert last() == f"{RESIZE} --like-suggested --out runs/toy/peft-smaller"  # a ViT, say
    assert last(task_type="SEQ_CLS").startswith(f"{RESIZE} --base MODEL --data")
    assert not last(readings=[]).startswith("Next")  # of the rank enough is used
    assert not last(findings=[warning]).startswith("Next")
    assert not last(**present).startswith("Next")


def test_the_per_layer_pattern_is_json_for_loraconfig():
    rows = [module(i, energy_rank_90=2 if i else 8) for i in range(4)]
    text = audit_text(report(rows, per_layer=rank_pattern(rows, bytes_per_param=4.0)))
    assert '"model\\\\.layers\\\\.0\\\\.self_attn\\\\.q_proj": 8' in text
    assert "modules by rank: r=2: 3, r=8: 1" in text


@every("unicode", [True, False])
def test_the_heat_map_fits_100_columns_and_grows_with_the_norm(unicode):
    rows = [module(i, kind) for i in range(120) for kind in ("self_attn.q_proj", "mlp.down_proj")]
    lines = heatmap(rows, unicode=unicode)
    assert max(map(len, lines)) <= 100
    assert all(ord(ch) < 128 for ch in "".join(lines)) != unicode
    first = next(line for line in lines if line.startswith("  self_attn.q_proj"))
    ramp = "▁▂▃▄▅▆▇█" if unicode else ".:-=+*#@"
    cells = [ramp.index(ch) for ch in first.removeprefix("  self_attn.q_proj").strip()]
    assert cells == sorted(cells)
    assert sum("self_attn.q_proj" in line for line in lines) == 2


def test_the_heat_map_shows_zero_missing_and_broken_modules_as_such():
    rows = [
        module(0),
        module(1, state="zero", frobenius_norm=0.0),
        module(2, state="non_finite", frobenius_norm="NaN"),
        module(4),
    ]
    mixed = [*rows, module(3, "mlp.up_proj")]
    assert heatmap(mixed)[-2].split(maxsplit=1)[1] == "▂0! █"


@every("of", ["norm", "utilization", "k90", "udr"])
def test_every_quantity_can_be_mapped(of):
    lines = heatmap([module(0, udr=0.5), module(1, udr=1.0)], of)
    assert lines[-1].endswith("█")


def test_a_map_of_nothing_says_so():
    outside = ModuleAudit(
        name="lm_head", module_type="other", shape=[2, 2], r=1, scaling=1.0, params=4, spectral_norm=1.0,
        frobenius_norm=1.0,
    )  # fmt: skip
    assert "no module lies in a layer" in heatmap([outside])[0]
