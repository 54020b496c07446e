"""An attention mask says which places hold tokens, in whatever numbers it says so."""

from __future__ import annotations

import pytest
from tables import every

torch = pytest.importorskip("torch", reason="needs the hf extra: pip install 'gradience[hf]'")

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
