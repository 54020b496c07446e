"""When each rule speaks, in a sentence. `{name}` stands for the threshold of that name: no number is written twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from gradience.rules.joins.joins import Join, Leg
from gradience.rules.rule import Threshold

CONDITIONS: Final[dict[str, str]] = {
    # check
    "VAL001": "a value that is not finite, or outside the range in which it has a meaning (lr, r and alpha above 0, "
    "dropout and betas from 0 to below 1, counts of at least 1, ...)",
    "SEC001": "a key that holds a secret is set; its value is not read",
    "LR001": "peak lr <= {low_lr}, unless scaling x r x lr >= {usual_step}",
    "LR002": "{band_top} < peak lr < {divergent_lr}, and scaling x r x lr, where known, > {best_step}",
    "LR003": "peak lr >= {divergent_lr}, and scaling x r x lr, where known, > {best_step}",
    "LR004": "peak lr > {preference_lr} under a preference or RL objective",
    "LR005": "r >= {rank_high}, alpha >= {spike_alpha_ratio} r and lr >= {spike_lr}, without rsLoRA",
    "LR006": "the optimizer named is not of the Adam family",
    "LR007": "init_lora_weights is PiSSA, OLoRA or CorDA, and peak lr >= {variant_lr}",
    "TGT001": "no target reaches an MLP module; a warning with more than {data_large} training examples",
    "TGT002": "PEFT would refuse a target, the targets match no module (both errors), they reach under {few_layers} of "
    "the layers, or one of them matches nothing (info)",
    "TGT003": "target_modules is null: PEFT chooses by model type",
    "TGT004": "classification with task_type and modules_to_save unset",
    "TGT005": "the tokenizer has added tokens, and no row of the embedding is trained",
    "RNK001": "tokens x {bits_per_token} bit > {capacity_excess} x trainable parameters x {bits_per_parameter} bit",
    "ALP001": "rsLoRA with alpha / sqrt(r) > {rslora_scaling}",
    "ALP002": "r >= {rank_moderate}, alpha < {small_alpha_ratio} r and lr <= {small_alpha_lr}, without rsLoRA",
    "NUM001": "fp16 training with autocast_adapter_dtype off",
    "BIA001": "bias is not 'none'",
    "REC001": "logging is off, or logging_steps is as long as the run or longer",
    "REC002": "eval_strategy is 'no'",
    "REC003": "logging_nan_inf_filter is on, which is the Trainer's default",
    "REC004": "saving is off, or save_steps is as long as the run or longer",
    "REC005": "output_dir already holds checkpoints, a log or an adapter, and nothing resumes or overwrites them",
    "BAT001": "more than {batch_large} sequences per optimizer step",
    "STP001": "fewer than {short_run} optimizer steps",
    "EPO001": "more than {epochs_many} epochs; a warning with evaluation off",
    "SCH001": "lr_scheduler_type is 'constant', and a warmup is set",
    "SCH002": "warmup takes {warmup_long} of all steps or more",
    "SCH003": "warmup_ratio is set, and transformers here is {warmup_ratio_removed} or later",
    "SRV001": "an engine named by --serve refuses a feature that the adapter has",
    "SRV002": "an engine named by --serve loads a feature that the adapter has, and computes something else",
    "SRV003": "an engine named by --serve loads the adapter and leaves a part out",
    "SRV004": "the largest rank lies between the sizes that an engine named by --serve allocates, above all of them, "
    "or above its default",
    # monitor
    "NUM101": "a loss, held-out loss or gradient norm is NaN or infinite; gradient norms alone, one or several single "
    "ones under fp16, are info (skipped steps)",
    "NUM102": "loss exactly 0.0 in 2 rows running, or in 1 whose gradient is 0 or not finite; or a loss over "
    "{masked_fall} under the rows before it where the gradient is not finite. Zeros after losses under "
    "{rounds_to_zero} with a living gradient are rounding, info",
    "DIV103": "over the median of 8 rows by {spike_k} x the median change of 32 rows (at least {spike_floor} of the "
    "level); a warning from {spike_rows} rows running",
    "DIV104": "the last window is over {diverged_ratio} x the lowest one, by {diverged_noise} standard errors, and "
    "above the start; or, as a warning, over {lost_share} of the fall is lost again",
    "PLT105": "Theil-Sen slope over the last {plateau_span} of the rows: a fall under {plateau_drop} and {falling} "
    "standard errors, at over {plateau_lr} of the peak rate; where the rate has decayed, over the last {plateau_long}",
    "NOL106": "the second half is less than {no_learning_drop}, and half a standard error, under the first fifth",
    "GRD107": "over {gradient_ratio} x the median before for {spike_rows} rows, or over it by {gradient_k} x the "
    "median change of ln(grad_norm) (at least {gradient_floor}); over {clipped_share} of the rows clipped is info",
    "GRD108": "grad_norm 0, or under {vanished_ratio} of the early median, in {vanished_rows} rows running while lr > "
    "0; info where the loss is under {memorized} of the early one",
    "LRS109": "lr 0 for {zero_rate_rows} rows (not the end of a decay), never {peak_share} of the configured peak, or "
    "{risen} x higher again after a decay without a resume",
    "OVF110": "the last {overfit_evals} evaluations are over the best by {overfit_rise} and {overfit_noise} x their "
    "noise, while the training loss fell; a warning over {overfit_much}",
    "GAP111": "held-out over train perplexity > {loss_gap}, once data repeat",
    "CHN112": "accuracy under chance plus {chance_z} standard deviations (plus {chance_margin} where n is unknown), or "
    "loss over {chance_loss} x ln K",
    "SML113": "half-width of the accuracy's 95 % interval > {small_eval}",
    "END114": "the log has no run_end",
    "TRN115": "lines that are torn, are no events, or are missing from the count; one torn last line is info",
    "RES116": "the log says that it was resumed; a warning where replayed losses differ by over {replay_difference} in "
    "the median of {replay_rows} steps and more",
    "DUP117": "a step twice in one session, steps that go back, or two processes in one log",
    "GAP118": "fewer than {few_rows} training rows, or no evaluation",
    "PRF119": "second half: rewards/accuracies within {separated} (or 2 standard errors) of one half, and a margin not "
    "{surely} standard errors over 0",
    "PRF120": "rewards/chosen fell by {chosen_fall} or more",
    "PRF121": "a margin over {start_margin} within the first {start_step} steps; not for ORPO and CPO",
    "RWD122": "the last fifth is under the best fifth by {reward_errors} standard errors and {reward_fall}, and over "
    "{lost_share} of the gain is lost; a reward that does not rise is info",
    "ZVR123": "frac_reward_zero_std > {zero_groups} in the last third; a warning over {zero_groups_most}",
    "KLD124": "kl > {kl_late} a token in the median of the last third, or > {kl_row} in one row",
    "CLP125": "completions/clipped_ratio > {cut_off} in the last third",
    "UND126": "the last of {unfinished_evals} evaluations or more is the best, and the loss fell over "
    "{unfinished_fall}, and {overfit_noise} x its noise, in the last quarter",
    "MEM127": "the training loss falls over every end of an epoch by over {epoch_drop} and {epoch_errors} standard "
    "errors, beyond what it fell just before",
    "CMP213": "the audit in the log: nine modules of ten keep 90 % of their energy at a lower rank than theirs",
    "TYP214": "the audit in the log: a type of modules with over {idle_params} of the parameters and under "
    "{idle_energy} of the energy",
    # audit
    "NUM201": "a module's factors hold NaN or infinity, or the file holds no adapter tensor",
    "TRN202": "the update of all modules is exactly zero; of some of them (a warning); or, with a base, its norm is "
    "under {near_untrained} of the weights' (a warning)",
    "RND203": "the median of stable rank over that of random factors is at least {random_share}, in "
    "{random_modules} or more modules of rank {random_rank} or more",
    "UTL204": "mean of stable rank / r < {low_utilization}, in the file or in the audit in a log",
    "LED205": "at least {mostly_other} of the file's bytes are neither LoRA factors nor DoRA magnitudes",
    "SCL206": "a module's factors have another rank than the config gives it",
    "SCL207": "a key of rank_pattern or alpha_pattern matches no module in the file",
    "SCL208": "lora_alpha is {alpha_default} and r is above it",
    "NUM209": "a module has lora_A without lora_B, or the reverse",
    "MRG210": "norm(dW) / norm(W) under {survival_bfloat16} for bfloat16 ({survival_float16} for float16), or what the "
    "merge adds has a cosine under {survival_cosine} with dW",
    "BAS211": "modules have no weight of their name and shape in the base; an error where none has",
    "INT212": "a leading singular vector of W + dW overlaps less than --intruder-eps with each of W's",
    # merge-check
    "MRG401": "cosine of two weighted updates <= {opposed}",
    "MRG402": "one weighted update's norm is {scale_ratio} x another's or more",
    "MRG403": "the sum holds under {kept_share} of what an adapter's weight asks for, along its own update",
    "MRG404": "over {cancelled} of the updates' magnitude cancels, by two standard errors",
    "MRG405": "cosine of two weighted updates >= {twins}",
    "MRG406": "phi of outputs and of inputs over {shared} and over chance, at a cosine under {unrelated}",
    "MRG407": "the configs name different base models",
    "MRG408": "an adapter is more or other than s B A",
}
_FACTS: Final = {
    "other_config": "it is not this adapter's",
    "other_log": "it is not this adapter's",
    "other_adapter": "it is not the one configured or recorded",
    "idle_targets": "a target of whose name nothing was adapted",
    "adapted": "modules of other names",
    "no_head": "no full module is in the file",
    "exploded": "entries of the update are large",
    "lowest": "a checkpoint from around the lowest loss",
    "best_reward": "a checkpoint from around the best reward",
    "best_checkpoint": "a checkpoint to keep",
    "no_checkpoint": "no checkpoint",
    "before_nan": "a checkpoint from before it",
    "short_of_the_end": "the newest checkpoint is older than the log's end",
}


def condition_of(rule_id: str, thresholds: Iterable[Threshold]) -> str:
    """Return when a rule speaks, with its thresholds' numbers.

    >>> condition_of("STP001", [Threshold("short_run", 100, "optimizer steps", "a source")])
    'fewer than 100 optimizer steps'
    """
    return CONDITIONS[rule_id].format_map({item.name: f"{item.value:g}" for item in thresholds})


def condition_of_join(join: Join) -> str:
    """Return which findings and facts of which sources a join puts together."""
    shown = "; ".join(f"{source}: {' or '.join(parts)}" for source, parts in _by_source(join.legs).items())
    ways = dict.fromkeys(" and ".join(wording.sources) for wording in join.wordings)
    return f"{shown}. It takes {', or '.join(ways)}"


def _by_source(legs: Iterable[Leg]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for leg in legs:
        parts.setdefault(leg.source, []).extend(_parts(leg))
    return parts


def _parts(leg: Leg) -> Iterator[str]:
    if leg.quiet:
        yield f"neither {' nor '.join(leg.quiet)}" if len(leg.quiet) > 1 else f"no {leg.quiet[0]}"
    marks = f" ({' or '.join(sorted(leg.marks)).replace('_', ' ')})" if leg.marks else ""
    for name in leg.ids:
        yield _FACTS.get(name, f"{name}{marks}")
