"""What a merge says of how it was made: the options that its method uses, and no others."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file
from tables import every

from gradience import merge_adapters
from gradience.cli.main import main


def adapter(folder, seed):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {f"base_model.model.q_proj.lora_{x}.weight": s for x, s in (("A", (2, 5)), ("B", (6, 2)))}
    save_file(
        {n: rng.standard_normal(s).astype(np.float32) for n, s in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@every(
    ("method", "options", "line", "told"),
    [
        ("linear", {}, "Method: linear", (None, None, [0.5, 0.5])),
        ("cat", {"weights": [1.0, -1.0]}, "Method: cat", (None, None, [1.0, -1.0])),
        ("svd", {"rank": 1}, "Method: svd", (None, None, [0.5, 0.5])),
        ("ties", {}, "Method: ties, density 0.2", (0.2, None, [1.0, 1.0])),
        ("ties", {"density": 0.5, "seed": 3}, "Method: ties, density 0.5", (0.5, None, [1.0, 1.0])),
        ("dare_linear", {"density": 0.5}, "Method: dare_linear, density 0.5, seed 0", (0.5, 0, [0.5, 0.5])),
        ("dare_ties", {"density": 0.5, "seed": 3}, "Method: dare_ties, density 0.5, seed 3", (0.5, 3, [1.0, 1.0])),
    ],
)
def test_a_method_tells_its_density_and_seed_where_it_has_them(tmp_path, capsys, method, options, line, told):
    sides = [adapter(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    report = merge_adapters(sides, method=method, **options)
    assert (report.method, report.density, report.seed, report.weights) == (method, *told)
    words = [f"--{name}={','.join(map(str, x)) if isinstance(x, list) else x}" for name, x in options.items()]
    assert main(["merge", *map(str, sides), "--out", str(tmp_path / "out"), "--method", method, *words]) == 0
    assert line in capsys.readouterr().out.splitlines()
    recorded = json.loads((tmp_path / "out" / "gradience_provenance.json").read_bytes())
    assert ('"seed"' in json.dumps(recorded)) >= (told[1] is not None)
