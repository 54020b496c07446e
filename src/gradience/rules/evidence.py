"""Literature and observations that rules of several files cite, with their numbers.

What one file cites stands in that file, beside its rules.
"""

from __future__ import annotations

from gradience.rules.rule import cite

SWEEP = "tinker-cookbook, recipes/chat_sl/results/sft_sweep.md (35 models, one chat data set, Adam, batch 128)"
LWR = "LoRA Without Regret, Schulman et al. 2025 (through tinker-docs and TRL's lora_without_regret.md)"

SWEEP_HIGH = cite(SWEEP, "80 runs diverged, 72 of them at 3e-3; 1e-3 costs +0.5 % in the median and up to 6.9 %")
TRL_RL = cite("TRL docs, peft_integration.md", "with LoRA: DPO 5e-6, GRPO 1e-5")
TINKER_STEPS = cite(
    "tinker-cookbook, skills/research/references/hyperparams.md",
    "at least 100 steps; the best results come with 1000 and more",
)
RECIPES = cite(
    "shipped recipes, counted",
    "SFT medians 2e-4 (Axolotl, n = 163), 3e-4 (torchtune, n = 99); RL 1e-5 (Axolotl, n = 15)",
)
NEMOTRON = cite("huggingface/peft#3554", "default targets hit 4 of 56 layers; loss stayed at ln 2 for all of DPO")
CLASSIFIER_DOCS = cite(
    "PEFT docs, troubleshooting",
    "a new head is trained and saved only if task_type or modules_to_save says so; else it is random",
)
SAVE_FLOW = cite(
    "transformers, DefaultFlowCallback (5.24)",
    "by steps: a checkpoint every save_steps and one at the end; with 'no' none",
)
NO_TRAIN_LOSS = cite(
    "experiment, transformers 5.24", "with logging_steps above the number of steps no loss row is written"
)
EVAL_DEFAULT = cite("transformers TrainingArguments", "eval_strategy is 'no' unless it is set")
INSTRUCT_GPT = cite(
    "InstructGPT, arXiv 2203.02155 (quoted)",
    "loss overfits after 1 epoch, yet more epochs raised human preference: counter-evidence",
)


TRIAL = cite("benchmarks/detectors.py", "recall and false findings on synthetic curves: docs/detectors.md")
MASKED = cite("transformers 5.24, observed", "a NaN step is logged as loss 0.0, grad_norm nan")
ALL_MASKED = cite("huggingface/trl#6668", "SFTTrainer logs loss 0.0 when every label is masked, and trains on")
NAN_TRL = cite("huggingface/trl#6702", "a corrupted run reports a clean loss curve")
DIVERGENCE = cite(
    "llm-foundry KillLossSpike; Axolotl LossWatchDogCallback",
    "half a window above the first one; above twice the initial loss three times",
)
KARPATHY = cite("Karpathy, A Recipe for Training Neural Networks", "check the loss against -ln(1/K)")
PRECHELT = cite(
    "Prechelt, Early Stopping - But When?", "GL = 100 (E / E_opt - 1) over 2; UP: worse in s successive strips"
)
LOGGING_DEFAULT = cite("transformers 5.24", "the default logging_steps=500 logs nothing in a short run")
ENERGY = cite("definition", "energy: sum of squared singular values of dW; no measure of usefulness")


UTILIZATION = cite("project convention", "utilization under 25 %: likely over-provisioned")
