"""What `gradience compare` prints of two adapters, line by line.

They have other ranks, scales and modules; in the second the update of one is zero.
"""

from __future__ import annotations

from pathlib import Path

from tables import every

from gradience import compare_adapters
from gradience.cli.main import main
from gradience.verbs.compare.view import comparison_section

HEAD = """
one: LORA  r=4  scaling=2.5..3  3 modules  norm(dW)=43.1
two: LORA  r=2..3  scaling=2.887..4.243  3 modules  norm(dW)=46.16
Configs differ in 4 fields:
  alpha_pattern: {"layers.1.v_proj": 5}  |  {"layers.0.up_proj": 5}
  r: 4  |  3
  rank_pattern: null  |  {"layers.0.q_proj": 2}
  target_modules: ["layers.0.up_proj", "layers.1.q_proj", "layers.1.v_proj"]  |  ["layers.0.q_proj", \
"layers.0.up_proj", "layers.1.q_proj"]

one -> two (2 modules in both):
  Whole update: cosine 0.020, norm ratio 1.07, change 145.1% of the first's norm
  Shared directions phi(k, k), mean over modules (1: the same span), and by chance:
      k  output side  by chance  input side  by chance
      1        0.084      0.083       0.202      0.143
      2        0.116      0.167       0.346      0.286
  Energy by layer: 84.1% moved (layer 0 15.9%>100.0%, 1 84.1%>0.0%)
"""
COLUMNS = "    cosine   norm x  phi out  phi in  module\n"
ZERO = "         -        0        -       -  layers.1.q_proj: zero\n"
OTHER = "    +0.059     2.25    0.406   0.675  layers.0.up_proj\n"
END = """
Not in all (2 modules): layers.0.q_proj (two); layers.1.v_proj (one)
Two runs differ by their seed alone as well; a cosine of weights does not measure behaviour.
"""


def least(top: int) -> str:
    return f"  Modules, the least alike first (top {top} of 2):\n{COLUMNS}"


@every(
    ("given", "modules"),
    [
        ([], least(2) + ZERO + OTHER),
        (["--top", "1"], least(1) + ZERO),
        (["--top", "1", "--verbose"], least(2) + ZERO + OTHER),
        (["--top", "0"], ""),
    ],
)
def test_every_line_of_two_unlike_adapters(monkeypatch, capsys, given, modules):
    monkeypatch.chdir(Path(__file__).parent / "golden")
    assert main(["compare", "one", "two", *given]) == 0
    shown = capsys.readouterr().out.split("\n", 3)[3]
    assert shown == f"{HEAD}{modules}{END}".removeprefix("\n")


def test_a_page_has_a_part_for_a_comparison_and_none_without():
    golden = Path(__file__).parent / "golden"
    (part,) = comparison_section(compare_adapters(golden / "one", golden / "two"))
    assert (part.name, part.title) == ("compare", "Compared by weights")
    assert comparison_section(None) == []
