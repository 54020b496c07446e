"""When each rule speaks, in a sentence. `{name}` stands for the threshold of that name: no number is written twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gradience.rules.rule import Threshold

CONDITIONS: Final[dict[str, str]] = {
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
}


def condition_of(rule_id: str, thresholds: Iterable[Threshold]) -> str:
    """Return when a rule speaks, with its thresholds' numbers.

    >>> condition_of("GAP118", [Threshold("few_rows", 20, "training rows", "a source")])
    'fewer than 20 training rows, or no evaluation'
    """
    return CONDITIONS[rule_id].format_map({item.name: f"{item.value:g}" for item in thresholds})
