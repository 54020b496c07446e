"""Literature and observations that rules of several files cite, with their numbers.

What one file cites stands in that file, beside its rules.
"""

from __future__ import annotations

from gradience.schema.findings import Evidence

SWEEP = "tinker-cookbook, recipes/chat_sl/results/sft_sweep.md (35 models, one chat data set, Adam, batch 128)"
LWR = "LoRA Without Regret, Schulman et al. 2025 (through tinker-docs and TRL's lora_without_regret.md)"

SWEEP_HIGH = Evidence(
    source=SWEEP,
    says="80 runs diverged, 72 of them at 3e-3; 1e-3 costs +0.5 % in the median and up to 6.9 %",
)
TRL_RL = Evidence(source="TRL docs, peft_integration.md", says="with LoRA: DPO 5e-6, GRPO 1e-5")
TINKER_STEPS = Evidence(
    source="tinker-cookbook, skills/research/references/hyperparams.md",
    says="at least 100 steps; the best results come with 1000 and more",
)
RECIPES = Evidence(
    source="shipped recipes, counted",
    says="SFT medians 2e-4 (Axolotl, n = 163), 3e-4 (torchtune, n = 99); RL 1e-5 (Axolotl, n = 15)",
)
NEMOTRON = Evidence(
    source="huggingface/peft#3554",
    says="default targets hit 4 of 56 layers; loss stayed at ln 2 for all of DPO",
)
CLASSIFIER_DOCS = Evidence(
    source="PEFT docs, troubleshooting",
    says="a new head is trained and saved only if task_type or modules_to_save says so; else it is random",
)
SAVE_FLOW = Evidence(
    source="transformers, DefaultFlowCallback (5.24)",
    says="by steps: a checkpoint every save_steps and one at the end; with 'no' none",
)
NO_TRAIN_LOSS = Evidence(
    source="experiment, transformers 5.24",
    says="with logging_steps above the number of steps no loss row is written",
)
EVAL_DEFAULT = Evidence(source="transformers TrainingArguments", says="eval_strategy is 'no' unless it is set")
INSTRUCT_GPT = Evidence(
    source="InstructGPT, arXiv 2203.02155 (quoted)",
    says="loss overfits after 1 epoch, yet more epochs raised human preference: counter-evidence",
)


TRIAL = Evidence(
    source="benchmarks/detectors.py", says="recall and false findings on synthetic curves: docs/detectors.md"
)
NAN_MONITORS = Evidence(
    source="Composer NaNMonitor; Keras TerminateOnNaN; Lightning check_finite", says="a loss that is not finite: stop"
)
MASKED = Evidence(source="transformers 5.24, observed", says="a NaN step is logged as loss 0.0, grad_norm nan")
NAN_TRL = Evidence(source="huggingface/trl#6702", says="a corrupted run reports a clean loss curve")
SPIKE_TRIAL = Evidence(
    source="spike trial, 200 clean and 200 spiked curves",
    says="k = 6: 161 found, 4 false alarms; mean + 6 sigma of 128 rows: 135 and 0, and 0 of 200 in logs of 60 rows",
)
SPIKE_PEERS = Evidence(
    source="OLMo-core SkipStepOptimizer; llm-foundry KillLossSpike; Lightning SpikeDetection",
    says="mean + 6 sigma of 128 rows; 2 x the mean of 100 rows, more than 4 in a row; 2 x the mean of 10",
)
DIVERGENCE = Evidence(
    source="llm-foundry KillLossSpike; Axolotl LossWatchDogCallback",
    says="half a window above the first one; above twice the initial loss three times",
)
PLATEAU = Evidence(source="torch ReduceLROnPlateau", says="no relative improvement over 1e-4 in 10 checks")
KARPATHY = Evidence(source="Karpathy, A Recipe for Training Neural Networks", says="check the loss against -ln(1/K)")
MEGATRON = Evidence(source="Megatron-LM is_unexpectedly_large; ZClip", says="10 x the largest of 100; z-score over 2.5")
CLIP = Evidence(source="definition", says="above max_grad_norm only the direction of the gradient is used")
SCHEDULE = Evidence(
    source="transformers/optimization.py (5.24)",
    says="schedules warm up once and decay; only *_with_restarts rise again",
)
PRECHELT = Evidence(
    source="Prechelt, Early Stopping - But When?",
    says="GL = 100 (E / E_opt - 1) over 2; UP: worse in s successive strips",
)
GAP_CONVENTION = Evidence(
    source="project convention", says="gap over 1.5x, that is 0.41 nats; no source for the number"
)
CHANCE = Evidence(source="binomial test, one-sided 95 %", says="chance plus 1.64 sqrt(p (1 - p) / n)")
BINOMIAL = Evidence(source="binomial 95 % interval", says="1.96 sqrt(p (1 - p) / n)")
TORN = Evidence(source="the recorder", says="one event is one write: only a kill, a full disk or a second writer tears")
REPLAY = Evidence(
    source="transformers, ignore_data_skip; TensorBoard's purge of restarted steps",
    says="a resumed run sees the same data at the same step, so the same loss, unless told otherwise",
)
SEQUENCE = Evidence(source="the recorder", says="seq counts the lines of one session; one writer holds the log's lock")
LOGGING_DEFAULT = Evidence(source="transformers 5.24", says="the default logging_steps=500 logs nothing in a short run")
ECKART_YOUNG = Evidence(
    source="Eckart-Young", says="no rank-k matrix is closer: the squared error is the energy of what is cut off"
)
ENERGY = Evidence(source="definition", says="energy: sum of squared singular values of dW; no measure of usefulness")
REWARD = Evidence(source="definition", says="the policy gradient's loss is 0 on average where advantages are centred")
DAPO_GROUPS = Evidence(
    source="DAPO, arXiv 2503.14476 (abstract; method through reviews)",
    says="groups that are all right or all wrong have no gradient; dynamic sampling leaves them out",
)
DAPO_LENGTH = Evidence(
    source="DAPO, arXiv 2503.14476 (through reviews)",
    says="punishing answers that were cut off adds noise to the reward",
)
GRPO_KL = Evidence(
    source="TRL 1.16, grpo_trainer.py (read)", says="kl: mean over the tokens against the reference; only with beta > 0"
)
LIKELIHOOD = Evidence(
    source="Smaug/DPO-Positive, arXiv 2402.13228 (abstract)",
    says="DPO can lower the likelihood of the chosen answer as long as the margin grows",
)
EPOCH_STEPS = Evidence(
    source="fast.ai, Can LLMs learn from a single example? (2023)",
    says="the training loss falls in steps at the ends of epochs: examples are memorized after one sight",
)
DPO_START = Evidence(
    source="DPO, arXiv 2305.18290 (the loss)", says="-log sigmoid(0) = ln 2 where policy and reference are the same"
)


UTILIZATION = Evidence(source="project convention", says="utilization under 25 %: likely over-provisioned")
