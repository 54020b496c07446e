"""Sources on configurations: learning rates, ranks, targets, schedules, and what libraries do with a setting."""

from __future__ import annotations

from gradience.schema.findings import Evidence

_SWEEP = "tinker-cookbook, recipes/chat_sl/results/sft_sweep.md (35 models, one chat data set, Adam, batch 128)"
_LWR = "LoRA Without Regret, Schulman et al. 2025 (through tinker-docs and TRL's lora_without_regret.md)"
_METAMATH = "PEFT method_comparison/MetaMathQA (Llama-3.2-3B, one seed, GSM8K n = 1319: standard error 1.4 pp)"

MECHANICAL = Evidence(source="definition", says="outside the range in which the quantity has a meaning")
SWEEP_LOW = Evidence(
    source=_SWEEP,
    says="median excess test loss: 4e-5 +2.6 % (up to 9.9), 1e-4 +1.1 %, 3e-4 0.0 %, 1e-3 +0.5 %",
)
SWEEP_HIGH = Evidence(
    source=_SWEEP,
    says="80 runs diverged, 72 of them at 3e-3; 1e-3 costs +0.5 % in the median and up to 6.9 %",
)
LWR_LR = Evidence(source=_LWR, says="the best LoRA rate is about 10 x that of full fine-tuning")
LWR_TARGETS = Evidence(
    source=_LWR, says="all layers, the MLP above all; attention only is worse even at equal parameters"
)
LWR_BATCH = Evidence(source=_LWR, says="large batches hurt LoRA more than full fine-tuning; rank does not fix it")
TRL_LR = Evidence(
    source="TRL docs, peft_integration.md",
    says="LoRA SFT 2e-4 (10 x 2e-5); the same page's command line has 2e-5: it disagrees with itself",
)
TRL_RL = Evidence(source="TRL docs, peft_integration.md", says="with LoRA: DPO 5e-6, GRPO 1e-5")
TRL_BATCH = Evidence(
    source="TRL docs, lora_without_regret.md",
    says="effective batch under 32; tinker-cookbook starts at 128",
)
TINKER_RL = Evidence(source="tinker-cookbook, skills/research/references/hyperparams.md", says="DPO 1e-5, GRPO 4e-5")
TINKER_STEPS = Evidence(
    source="tinker-cookbook, skills/research/references/hyperparams.md",
    says="at least 100 steps; the best results come with 1000 and more",
)
UNSLOTH_RL = Evidence(source="Unsloth LoRA hyperparameters guide", says="2e-4 for SFT, 5e-6 for reinforcement learning")
UNSLOTH_EPOCHS = Evidence(source="Unsloth LoRA hyperparameters guide", says="1 to 3 epochs")
RECIPES = Evidence(
    source="shipped recipes, counted",
    says="SFT medians 2e-4 (Axolotl, n = 163), 3e-4 (torchtune, n = 99); RL 1e-5 (Axolotl, n = 15)",
)
DEFAULT_LRS = Evidence(
    source="library defaults",
    says="transformers 5e-5, TRL's SFTConfig 2e-5, MLX-LM 1e-5",
)
ALPACA_DIVERGED = Evidence(
    source="tloen/alpaca-lora#391", says="lr 0.003 with r = 128, alpha = 256: the loss went to 0"
)
BIDERMAN = Evidence(
    source="LoRA Learns Less and Forgets Less, Biderman et al. 2024, repository README (Llama-2-7B, LionW)",
    says="r = 256, alpha = 512: 1e-4, not 2e-4, 'due to instabilities/loss spikes'; math 5e-5, not 1e-4",
)
VARIANTS = Evidence(
    source="Learning Rate Matters: Vanilla LoRA May Suffice, arXiv 2602.04998 (abstract)",
    says="each variant has its own range of rates, PiSSA's lower; tuned, nine variants are within 1 to 2 %",
)
METAMATH_MLP = Evidence(
    source=_METAMATH,
    says="MLP only, r = 10: 49.4 %, train loss 0.581; q and v, r = 32, as many parameters: 47.8 %, 0.607",
)
METAMATH_RSLORA = Evidence(
    source=_METAMATH, says="r = 64 with rsLoRA, scaling 8: 51.3 %; r = 64, alpha = 128, scaling 2: 47.4 %"
)
QLORA_TARGETS = Evidence(
    source="QLoRA scripts; PEFT docs",
    says="adapters on all linear layers are needed to equal full fine-tuning",
)
RSLORA = Evidence(source="rsLoRA, arXiv 2312.03732 (abstract)", says="alpha / r makes high ranks learn slowly")
NEMOTRON = Evidence(
    source="huggingface/peft#3554",
    says="default targets hit 4 of 56 layers; loss stayed at ln 2 for all of DPO",
)
DEFAULT_TARGETS = Evidence(
    source="peft/utils/constants.py (0.21)",
    says="llama, mistral, qwen, gemma: q_proj, v_proj; bert, roberta: query, value; unknown type: ValueError",
)
CLASSIFIER_DOCS = Evidence(
    source="PEFT docs, troubleshooting",
    says="a new head is trained and saved only if task_type or modules_to_save says so; else it is random",
)
LATE_PEAK = Evidence(source="definition", says="the peak rate is reached when warmup ends: after half the run or more")
SAVE_FLOW = Evidence(
    source="transformers, DefaultFlowCallback (5.24)",
    says="by steps: a checkpoint every save_steps and one at the end; with 'no' none",
)
NO_TRAIN_LOSS = Evidence(
    source="experiment, transformers 5.24",
    says="with logging_steps above the number of steps no loss row is written",
)
EVAL_DEFAULT = Evidence(source="transformers TrainingArguments", says="eval_strategy is 'no' unless it is set")
NAN_FILTER = Evidence(
    source="huggingface/trl#6702; experiment, transformers 5.24",
    says="a non-finite loss is replaced by the running mean in the log: the log shows a healthy number",
)
TOKEN_PICKLE = Evidence(
    source="experiment, transformers 5.24; huggingface/transformers#34612",
    says="training_args.bin is a pickle of the arguments, and hub_token stands in it in clear text",
)
CONSTANT_SCHEDULE = Evidence(
    source="transformers/optimization.py, get_scheduler (5.24)",
    says="'constant' returns before warmup is looked at",
)
WARMUP_RATIO = Evidence(
    source="huggingface/peft#2949; transformers 5.24",
    says="warmup_ratio is deprecated in 5.0 and removed in 5.2; warmup_steps below 1 is a ratio from 5.0 on",
)
FP16_DOCS = Evidence(
    source="PEFT docs, troubleshooting",
    says="fp16 adapter under fp16 AMP: 'Attempting to unscale FP16 gradients'",
)
LORA_BIAS = Evidence(
    source="PEFT, LoraConfig docstring",
    says="disabling the adapter no longer gives the base model's output",
)
INSTRUCT_GPT = Evidence(
    source="InstructGPT, arXiv 2203.02155 (quoted)",
    says="loss overfits after 1 epoch, yet more epochs raised human preference: counter-evidence",
)
LWR_CAPACITY = Evidence(
    source=_LWR,
    says="an adapter holds about 2 bits a parameter and a data set about 1 bit a token; past that LoRA falls behind",
)
PEFT_MATCHING = Evidence(
    source="PEFT 0.21.2, tuners/tuners_utils.py: check_target_module_exists, inject_adapter",
    says="a name matches whole or after a dot, a text as a full expression; what PEFT has no LoRA for raises",
)
ADDED_TOKENS = Evidence(
    source="PEFT docs, developer_guides/troubleshooting.md",
    says="with an extended vocabulary the embedding must be trained and saved, else outputs are wrong after loading",
)
OUTPUT_REUSED = Evidence(
    source="huggingface/transformers#19446; roboflow/rf-detr#1325",
    says="a second run into the same folder mixes checkpoints and logs with the first, or overwrites them",
)
SERVE_TABLE = Evidence(
    source="policy/serve_facts.py, a table read from the engines' sources",
    says="each row names its repository, commit and file; each finding cites its own row",
)


JITTER = Evidence(
    source="heuristic",
    says="evaluations of one set share its examples, so what tells two apart is how their losses jump about, seen in "
    "second differences, and not the error that other examples would bring",
)
ONE_ERROR = Evidence(
    source="one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984",
    says="results within one standard error of the best cannot be told from it",
)
NOISE_SPREAD = Evidence(
    source="heuristic",
    says="the spread of the losses of single examples is not logged: it is taken as their mean, and with an accuracy p "
    "as sqrt(p / (1 - p)) times their mean if that is more",
)
EXPLODED = Evidence(
    source="heuristic; adapters at hand", says="an update's entries are 1e-4 to 3e-3 in size in trained adapters"
)
ZERO_B = Evidence(source="LoRA, arXiv 2106.09685; PEFT's default", says="B starts at zero: before a step s B A is zero")
FACTORS = Evidence(source="the weights file", says="rank and names of the modules are those of the factors stored")
PATTERNS = Evidence(
    source="PEFT, tuners_utils (0.21)", says="target_modules that match nothing raise only where none of them matches"
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


LORA_ZERO = Evidence(source="LoRA, arXiv 2106.09685", says="B starts at zero: an update of zero is that of no step")
UTILIZATION = Evidence(source="project convention", says="utilization under 25 %: likely over-provisioned")
STABLE_RANK = Evidence(source="SSRN 6580122 (abstract)", says="stable rank grows as about r^0.23 to r^0.30")
PATTERN_KEY = Evidence(source="peft/utils/other.py, get_pattern_key", says=r're.match(rf"(.*\.)?({key})$", path)')
SMALL_ALPHA = Evidence(
    source="huggingface/lerobot#3551",
    says="r=64 with the default alpha gave s=0.125, and a policy that hardly moved until alpha was 64",
)
MERGE_TRIAL = Evidence(
    source="measured on gaussian weights",
    says="in bfloat16 norm(dW)/norm(W) of 3e-3 keeps cosine .89, 1e-3 keeps .63, 1e-4 keeps .21",
)
MERGE_FACT = Evidence(source="this adapter and base", says="computed entry by entry, rounding as the merge does")
INTRUDERS = Evidence(source="arXiv 2410.21228", says="LoRA has intruder dimensions where full fine-tuning has few")
