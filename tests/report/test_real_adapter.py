"""A report on an adapter that PEFT itself saved."""

from __future__ import annotations

import pytest
from pages import gather, parse

from gradience.render.page import report_html

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def test_the_spectra_and_the_map_are_of_the_modules_that_peft_saved(log, tmp_path):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.ModuleDict({"up": torch.nn.Linear(24, 40)}) for _ in range(4)])
    model = peft.get_peft_model(
        torch.nn.ModuleDict({"layers": layers}), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["up"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name and ".3." not in name:  # the last layer stays untrained
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "peft")
    story = gather(log, adapter=tmp_path / "peft")
    assert story.diagnosis.audit is not None
    assert [len(m.top_singular_values) for m in story.diagnosis.audit.modules if m.state == "ok"] == [4, 4, 4]
    found = parse(report_html(story))
    assert "3 of 4 modules have a spectrum" in found.text
    tips = [a["aria-label"] for a in found.all("svg") if a.get("aria-label", "").startswith("How large")]
    assert "1 kinds of module in 4 layers" in tips[0]
    for module in story.diagnosis.audit.modules[:3]:
        assert f": {module.frobenius_norm:.4g}" in found.text
