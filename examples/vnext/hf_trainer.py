"""Record a run of the Hugging Face Trainer with one argument: `callbacks=[GradienceCallback()]`.

    python examples/vnext/hf_trainer.py --out runs/hf
    gradience monitor runs/hf/run.jsonl

Nothing is downloaded. The base is a two-layer Llama with random weights; the data are sequences that count upwards
modulo 32.
"""

from __future__ import annotations

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from gradience.hf import GradienceCallback

MODULUS = 32


def counting(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences that count upwards and wrap around to 0, from even starts, or from odd ones if the seed is."""
    half = torch.randint(0, MODULUS // 2, (n, 1), generator=torch.Generator().manual_seed(seed))
    first = 2 * half + seed % 2
    return [{"input_ids": row, "labels": row} for row in (first + torch.arange(12)) % MODULUS]


def main() -> None:
    """Train a small model and record the run."""
    parser = argparse.ArgumentParser(description="Record a small Trainer run.")
    parser.add_argument("--out", required=True, help="folder for run.jsonl, checkpoints and the adapter")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--save-steps", type=int, default=0, help="steps between checkpoints; 0: none")
    options = parser.parse_args()

    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=MODULUS, max_position_embeddings=32, **sizes))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")

    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            warmup_steps=options.steps // 10,
            logging_steps=1,  # by default the Trainer logs every 500 steps: a short run would leave no row
            eval_strategy="steps",
            eval_steps=max(1, options.steps // 4),
            save_strategy="steps" if options.save_steps else "no",
            save_steps=options.save_steps or 500,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=counting(512, seed=1),
        eval_dataset=counting(64, seed=2),
        callbacks=[GradienceCallback(dataset_name="counting modulo 32", task_profile="generation")],
    )
    trainer.train()
    trainer.save_model(f"{options.out}/peft")


if __name__ == "__main__":
    main()
