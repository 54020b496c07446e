"""Which of several candidates a rule on logs names, and what it does with a number that two readings share."""

from __future__ import annotations

from log_runs import FALL, _audited as audited, run, said

from gradience.rules.log.facts import RunFacts


def of_types(**groups: tuple[int, float]) -> RunFacts:
    """An audit by type: parameters and share of the energy."""
    return audited(by_type={name: {"n": 2, "params": p, "energy_share": e} for name, (p, e) in groups.items()})


def test_of_two_idle_types_the_larger_one_is_named_first():
    found = said("TYP214", of_types(attn=(500, 0.99), mlp=(200, 0.0061), head=(300, 0.0039)))
    assert found.message.startswith("Modules of type head (and mlp) carry next to nothing: 2 modules, 30% of the LoRA")
    assert found.values == {"type": "head", "modules": 2, "params_share": 0.3, "energy_share": 0.0039}


def test_an_accuracy_of_one_is_whole_and_one_above_it_in_per_cent():
    for accuracy, severity in ((1.0, None), (0.5, "warning"), (50.0, "warning"), (100.0, None)):
        facts = run(FALL, held_out=[0.7, 0.69], accuracy=accuracy, n=100, num_labels=2)
        found = said("CHN112", facts)
        assert (found and found.severity) == severity, accuracy
