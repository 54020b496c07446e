"""LyCORIS's own layers are the truth: what they compute, the base computes with the update that is read off the file.

The forward pass is compared, not LyCORIS's merge, which multiplies LoHa's and LoKr's update by the scale twice (4.1.3).
"""

from __future__ import annotations

import copy

import lycoris
import numpy as np
import pytest
import torch
from tables import every
from torch import nn

from gradience.adapters.files import find_files
from gradience.adapters.open import read_adapter
from gradience.io.safetensors import SafetensorsFile

pytestmark = pytest.mark.oracle("lycoris")

INPUTS = {"q_proj": (5, 16), "conv2d": (2, 6, 7, 7), "pointwise": (2, 6, 7, 7)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(16, 20)}) for _ in range(2))
        self.conv2d = nn.Conv2d(6, 8, 3)
        self.pointwise = nn.Conv2d(6, 10, 1)


def trained(tmp_path, algo, **options):
    """Return the base, LyCORIS's model with random factors, and the adapter that it saved."""
    base = Net().eval()
    model = copy.deepcopy(base)
    sizes = {"linear_dim": 2, "linear_alpha": 3, "conv_dim": 2, "conv_alpha": 1}
    network = lycoris.create_lycoris(model, 1.0, algo=algo, **sizes, **options)
    network.apply_to()
    network.eval()
    for name, parameter in network.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = parameter.data * (1 + 0.2 * noise) if "dora" in name else 0.6 * noise
    file = tmp_path / "adapter.safetensors"
    network.save_weights(str(file), None, None)
    return base, model, read_adapter(find_files(file), SafetensorsFile)


@every(
    ("algo", "options"),
    [
        ("locon", {}),
        ("locon", {"use_tucker": True}),
        ("locon", {"rs_lora": True}),
        ("locon", {"dora_wd": True}),
        ("loha", {}),
        ("loha", {"use_tucker": True}),
        ("loha", {"rs_lora": True}),
        ("loha", {"dora_wd": True}),
        ("lokr", {}),
        ("lokr", {"factor": 4}),
        ("lokr", {"full_matrix": True}),
        ("lokr", {"decompose_both": True, "factor": 2}),
        ("lokr", {"use_tucker": True, "factor": 2}),
        ("lokr", {"dora_wd": True}),
    ],
    ids=str,
)
def test_an_adapter_of_lycoris_is_what_its_layers_compute(tmp_path, algo, options):
    base, model, adapter = trained(tmp_path, algo, **options)
    assert len(adapter.modules) == 4
    assert not adapter.skipped
    paths = {f"lycoris_{name.replace('.', '_')}": name for name, _ in base.named_modules()}
    for module in adapter.modules:
        path = paths[module.name]
        layer = base.get_submodule(path)
        w = layer.weight.detach().numpy()
        if module.dense is not None:
            update = module.dense(w.astype(np.float64))
        else:
            b, a = module.load()
            update = module.scale * b.astype(np.float64) @ a
        x = torch.randn(INPUTS[path.rpartition(".")[2]])
        before = layer(x)
        truth = model.get_submodule(path)(x)
        layer.weight.data += torch.from_numpy(update.reshape(w.shape)).float()
        assert (truth - before).abs().max() > 0.05
        torch.testing.assert_close(layer(x), truth, atol=1e-5, rtol=1e-5)
