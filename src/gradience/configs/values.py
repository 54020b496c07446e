"""Keys that PEFT, transformers and TRL know. One that is in none of these lists is named in the report.

Collected from peft 0.21 (LoraConfig) and older files, transformers 4.3 to 5.24 (TrainingArguments), and the
configs of TRL's trainers: of 1.16, and as saved by real runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, get_args

from gradience.errors import ConfigError
from gradience.schema.scalars import Json, NonFinite, TaskProfile
from gradience.schema.scalars import real as on_the_wire

LORA_KEYS = frozenset(  # PEFT
    """
    alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias
    corda_config enable_lora ensure_weight_tying eva_config exclude_modules fan_in_fan_out
    inference_mode init_lora_weights kasa_config layer_replication layers_pattern
    layers_to_transform loftq_config lora_alpha lora_bias lora_dropout lora_ga_config
    megatron_config megatron_core merge_weights modules_to_save monteclora_config peft_type
    peft_version qalora_group_size r rank_pattern revision runtime_config target_modules
    target_parameters task_type trainable_token_indices use_bdlora use_dora use_qalora use_rslora
    velora_config
    """.split()  # noqa: SIM905 - a word list reads better than 100 quoted lines
)

TRAINING_KEYS = frozenset(  # transformers
    """
    _n_gpu accelerator_config activation_checkpointing activation_checkpointing_kwargs adafactor
    adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices
    batch_eval_metrics bf16 bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed
    deepspeed_plugin disable_tqdm dispatch_batches distributed_state do_eval do_predict do_train
    enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start
    eval_steps eval_strategy eval_use_gather_object evaluate_during_training evaluation_strategy
    fp16 fp16_backend fp16_full_eval fp16_opt_level fsdp fsdp_config fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap full_determinism gradient_accumulation_steps
    gradient_checkpointing gradient_checkpointing_kwargs greater_is_better group_by_length
    half_precision_backend hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy
    hub_token ignore_data_skip include_for_metrics include_inputs_for_metrics
    include_num_input_tokens_seen include_tokens_per_second jit_mode_eval label_names
    label_smoothing_factor learning_rate length_column_name liger_kernel_config
    load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_dir
    logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs
    lr_scheduler_type max_grad_norm max_steps metric_for_best_model mp_parameters n_gpu
    neftune_noise_alpha no_cuda num_train_epochs optim optim_args optim_target_modules output_dir
    overwrite_output_dir parallelism_config past_index per_device_eval_batch_size
    per_device_train_batch_size per_gpu_eval_batch_size per_gpu_train_batch_size
    prediction_loss_only project push_to_hub push_to_hub_model_id push_to_hub_organization
    push_to_hub_token ray_scope remove_unused_columns report_to
    restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node
    save_only_model save_safetensors save_steps save_strategy save_total_limit seed sharded_ddp
    skip_memory_metrics split_batches tf32 torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps torchdynamo tp_size tpu_metrics_debug tpu_num_cores trackio_bucket_id
    trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_ipex
    use_legacy_prediction_loop use_liger_kernel use_mps_device warmup_ratio warmup_steps
    weight_decay xpu_backend
    """.split()  # noqa: SIM905 - a word list reads better than 100 quoted lines
)

TRL_KEYS = frozenset(  # TRL
    """
    activation_offloading alpha assistant_only_loss beta cache_implementation callbacks
    cast_lm_head_to_fp32 center_rewards_coefficient chat_template_kwargs chat_template_path
    cliprange completion_only_loss cpo_alpha dataset_batch_size dataset_kwargs dataset_num_proc
    dataset_text_field delta desirable_weight disable_dropout discopop_tau distillation_add_tail
    distillation_alpha distillation_is_clip distillation_mode distillation_topk
    ds3_gather_for_generation entropy_coef entropy_coef_delta entropy_coef_max entropy_coef_min
    entropy_target eos_token epsilon epsilon_high eval_packing f_alpha_divergence_coef
    f_divergence_type force_use_ref_model gamma generate_during_eval generate_from_teacher
    generation_batch_size generation_kwargs importance_sampling_level is_encoder_decoder kl_coef
    label_pad_token_id label_smoothing lam ld_alpha lmbda log_completions
    log_completions_hub_repo log_completions_steps log_multimodal log_unique_prompts loss_type
    loss_weights mask_truncated_completions max_completion_length max_length max_new_tokens
    max_prompt_length max_seq_length max_tool_calling_iterations min_p missing_eos_penalty
    model_adapter_name model_init_kwargs multi_objective_aggregation normalize_advantages
    num_completions_to_print num_generations num_generations_eval num_iterations
    num_loss_tokens_to_skip num_of_sequences num_ppo_epochs off_policy_mask_threshold packing
    packing_strategy pad_to_multiple_of pad_token padding_free padding_value
    precompute_ref_batch_size precompute_ref_log_probs ref_adapter_name ref_model_init_kwargs
    ref_model_mixup_alpha ref_model_sync_steps reference_free repetition_penalty
    reward_clip_range reward_model_path reward_weights router_aux_loss_coef rpo_alpha
    sapo_temperature_neg sapo_temperature_pos scale_rewards seq_kd shuffle_dataset simpo_gamma
    steps_per_generation sync_ref_model teacher_model_init_kwargs teacher_model_kind
    teacher_model_name_or_path teacher_model_revision teacher_prompt_template teacher_sync_steps
    teacher_tokenizer_name_or_path teacher_update_rate temperature tools top_entropy_quantile
    top_k top_p tpo_alpha tpo_l_gamma transformers_continuous_batching_config truncation_mode
    trust_remote_code uld_crossentropy_weight uld_distillation_weight uld_hybrid_matched_weight
    uld_hybrid_unmatched_weight uld_skip_student_eos uld_skip_teacher_eos
    uld_student_temperature uld_teacher_temperature uld_token_merge_strategy uld_use_hybrid_loss
    undesirable_weight use_adaptive_entropy use_bias_correction_kl use_extended_uld
    use_liger_loss use_logits_to_keep use_teacher_server use_transformers_continuous_batching
    use_transformers_paged use_uld_loss use_vllm use_weighting vespo_k_neg vespo_k_pos
    vespo_lambda_neg vespo_lambda_pos wandb_log_unique_prompts
    """.split()  # noqa: SIM905 - a word list reads better than 100 quoted lines
)

_FAMILIES = ("vllm_", "unsloth_", "_")  # settings of engines, and private fields of a dataclass


def knows_lora(key: str) -> bool:
    """Whether PEFT has a LoRA setting of this name, or had one."""
    return key in LORA_KEYS


def knows_training(key: str) -> bool:
    """Whether transformers or TRL has a training argument of this name, or had one."""
    return key in TRAINING_KEYS or key in TRL_KEYS or key.startswith(_FAMILIES)


MAX_DEPTH = 64  # levels of nesting: a configuration has two or three
MAX_TEXT = 256  # characters: longer strings are redacted in a log, and refused here
MAX_REGEX = 8192  # characters: a generated `target_modules` expression can be long
MAX_SHOWN = 40  # characters of a value quoted in an error
MAX_INT = 2**63  # what JSON readers of our reports can hold

T = TypeVar("T")

_ENUM = re.compile(r"[A-Z][A-Za-z0-9]*\.(\w+)")  # `OptimizerNames.ADAMW_TORCH`, as str() writes an enum
_NO = {"false", "no", "off", "0"}
_YES = {"true", "yes", "on", "1"}


class Malformed(ValueError):  # noqa: N818  # says what the text is
    """A text is not a usable document, or a value is not what its key wants: the message says which."""


def plain(value: Json) -> str:
    """Describe a value for an error: its kind, and itself if short.

    >>> plain("abc"), plain(None), plain([1])
    ("the text 'abc'", 'null', 'a list')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    shown = ascii(value) if isinstance(value, str) else _digits(value)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."
    return f"the text {shown}" if isinstance(value, str) else f"the number {shown}"


def _digits(value: float) -> str:
    big = isinstance(value, int) and abs(value) >= MAX_INT
    return "of more than 18 digits" if big else repr(value)


def real(value: Json) -> float | NonFinite:
    """Return a number, also where it is written as text (YAML 1.1 reads `1e-4` as text)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Malformed("a number")
    try:
        return on_the_wire(float(value))
    except OverflowError:
        return on_the_wire(math.inf if int(value) > 0 else -math.inf)
    except ValueError:
        raise Malformed("a number") from None


def whole(value: Json) -> int:
    """Return a whole number; 8.0 and "8" are 8, and 8.5 is refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        read = real(value)
        if isinstance(read, str) or not read.is_integer():
            raise Malformed("a whole number")
        number = int(read)
    if abs(number) >= MAX_INT:
        raise Malformed("a whole number of at most 18 digits")
    return number


def text(value: Json) -> str:
    """Return a short text."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Malformed(f"a text of at most {MAX_TEXT} characters")
    return printable(value)


def printable(value: str) -> str:
    """Return the text without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return value.encode("utf-8", "replace").decode("utf-8")


def keyword(value: Json) -> str:
    """Return a name from a fixed choice, in lower case, without the name of its Python enum."""
    found = text(value)
    match = _ENUM.fullmatch(found)
    return (match[1] if match else found).lower()


def upper(value: Json) -> str:
    """Return a name from a fixed choice, as PEFT writes them: in upper case."""
    return keyword(value).upper()


def strategy(value: Json) -> str:
    """Return when something happens: `no`, `steps`, `epoch`. YAML 1.1 reads a bare `no` as false."""
    return "no" if value is False else keyword(value)


def flag(value: Json) -> bool:
    """Return a yes or no, also as 0 and 1 or as text."""
    word = str(value).lower() if isinstance(value, bool | int | str) else ""
    if word in _YES | _NO:
        return word in _YES
    raise Malformed("true or false")


def as_text(value: Json) -> str:
    """Return a value that is true, false or a name, as text (PEFT's `init_lora_weights`)."""
    return str(value).lower() if isinstance(value, bool) else text(value)


def short_name(value: Json) -> str:
    r"""Return a hub id as it is, and only the last part of a path: a log must not tell where things lie.

    >>> short_name("org/model"), short_name("/home/me/model/"), short_name("C:\\models\\m")
    ('org/model', 'model', 'm')
    """
    found = text(value)
    parts = [part for part in re.split(r"[/\\]", found) if part]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", found) is not None
    return found if is_hub_id or not parts else parts[-1]


def names(value: Json) -> list[str] | str:
    """Return a list of module names, or one expression."""
    if isinstance(value, str) and len(value) <= MAX_REGEX:
        return printable(value)
    if isinstance(value, list):
        return [text(item) for item in value]
    raise Malformed("a list of names, or one text")


def name_list(value: Json) -> list[str]:
    """Return a list of names; one name is a list of one."""
    found = names(value)
    return [found] if isinstance(found, str) else found


def reals(value: Json) -> list[float | NonFinite]:
    """Return a list of numbers."""
    if not isinstance(value, list):
        raise Malformed("a list of numbers")
    return [real(item) for item in value]


def wholes(value: Json) -> list[int]:
    """Return a list of whole numbers."""
    if not isinstance(value, list):
        raise Malformed("a list of whole numbers")
    return [whole(item) for item in value]


def layer_numbers(value: Json) -> list[int]:
    """Return PEFT's `layers_to_transform` as a list; one number is a list of one."""
    return wholes(value) if isinstance(value, list) else [whole(value)]


def token_indices(value: Json) -> list[int] | dict[str, list[int]]:
    """Return PEFT's `trainable_token_indices`: token ids, of the input embedding or by layer."""
    if isinstance(value, dict):
        return {printable(key): wholes(item) for key, item in value.items()}
    return wholes(value)


def layer_ranges(value: Json) -> list[list[int]]:
    """Return PEFT's `layer_replication`: ranges of layers."""
    if not isinstance(value, list):
        raise Malformed("a list of pairs of whole numbers")
    return [wholes(item) for item in value]


def pattern(read: Callable[[Json], T]) -> Callable[[Json], dict[str, T]]:
    """Return a reader of PEFT's `rank_pattern` and `alpha_pattern`: module pattern to number."""

    def read_pattern(value: Json) -> dict[str, T]:
        if not isinstance(value, dict):
            raise Malformed("a mapping of module patterns to numbers")
        return {printable(key): read(item) for key, item in value.items()}

    return read_pattern


def profile(value: Json) -> TaskProfile:
    """Return one of the task profiles."""
    choices = get_args(TaskProfile)
    for choice in choices:
        if choice == value:
            found: TaskProfile = choice
            return found
    raise Malformed(f"one of {', '.join(choices)}")


_SECRET = re.compile(r"(?:.*_)?(?:token|api_?key|access_?key|secret(?:_key)?|password)", re.IGNORECASE)
_VOCABULARY = re.compile(  # tokens of a tokenizer, not of an account
    r"(?:.*_)?(?:eos|bos|pad|unk|sep|cls|mask|start|end|stop|image|audio|video|vision|think|special|boi|eoi)_token",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"<[A-Z0-9_]+>")  # what TrainingArguments.to_dict() writes, set or not


class Fields:
    """One level of a document. Nothing is read by ``getattr`` or by guess; secrets are never read."""

    def __init__(self, mapping: dict[str, Json], where: str, at: str = "$") -> None:
        self._mapping = mapping
        self._where = where
        self._at = at
        self._read: set[str] = set()

    def __contains__(self, name: object) -> bool:
        """Whether the document has the key."""
        return name in self._mapping

    @property
    def n_read(self) -> int:
        """How many keys were understood."""
        return len(self._read)

    def is_null(self, *keys: str) -> bool:
        """Whether one of the keys is there and none of them has a value."""
        present = [key for key in keys if key in self._mapping]
        return bool(present) and all(self._mapping[key] is None for key in present)

    def is_mapping(self, key: str) -> bool:
        """Whether the key holds a mapping: a section, where a plain value could have stood."""
        return isinstance(self._mapping.get(key), dict)

    def holds(self, key: str, inner: str) -> bool:
        """Whether the key holds a mapping with that key in it; neither counts as read."""
        value = self._mapping.get(key)
        return isinstance(value, dict) and inner in value

    def take(self, keys: Sequence[str], read: Callable[[Json], T]) -> T | None:
        """Return the value under whichever of the keys is set; ConfigError where two of them disagree."""
        found: dict[str, T] = {}
        for key in keys:
            if key not in self._mapping:
                continue
            self._read.add(key)
            if self._mapping[key] is not None:
                found[key] = self._value(key, read)
        values = list(found.values())
        if any(value != values[0] for value in values):
            message = f"{self._where}: {self._at}: {' and '.join(found)} say different things"
            raise ConfigError(message, advice="they are names of one setting: keep one")
        return values[0] if values else None

    def section(self, key: str) -> Fields | None:
        """Return the mapping under a key as fields of its own, or None where there is none."""
        value = self._mapping.get(key)
        if not isinstance(value, dict):
            return None
        self._read.add(key)
        return Fields(value, self._where, f"{self._at}.{printable(key)}")

    def contradiction(self, setting: str) -> ConfigError:
        """Return the error for a setting that another level of the document has with another value."""
        message = f"{self._where}: {self._at}: {setting} is given twice, with different values"
        return ConfigError(message, advice="a section and the top level speak of one setting: keep one")

    def left_over(self, known: Callable[[str], bool]) -> Iterator[str]:
        """Yield the keys that were neither read nor known, with their place; never a value."""
        for key in self._mapping:
            if key not in self._read and not known(key) and not _is_secret(key):
                yield f"{self._at}.{printable(key)[:MAX_TEXT]}".removeprefix("$.")

    def secrets(self) -> Iterator[str]:
        """Yield the keys that hold a credential. The values are not looked at any further."""
        for key, value in self._mapping.items():
            if _is_secret(key) and isinstance(value, str) and value and not _PLACEHOLDER.fullmatch(value):
                yield printable(key)[:MAX_TEXT]

    def masked(self) -> Iterator[str]:
        """Yield the keys whose credential, if any, was masked before it came here."""
        for key, value in self._mapping.items():
            if _is_secret(key) and isinstance(value, str) and _PLACEHOLDER.fullmatch(value):
                yield printable(key)[:MAX_TEXT]

    def scalars(self) -> dict[str, Json]:
        """Return the short plain values that are no credential: what may be kept of an `extras`."""
        kept = {key: value for key, value in self._mapping.items() if _is_short(value) and not _is_secret(key)}
        self._read |= set(kept)
        return {
            printable(key)[:MAX_TEXT]: on_the_wire(value) if isinstance(value, float) else value
            for key, value in kept.items()
        }

    def _value(self, key: str, read: Callable[[Json], T]) -> T:
        try:
            return read(self._mapping[key])
        except Malformed as error:
            got = plain(self._mapping[key])
            message = f"{self._where}: {self._at}.{key}: expected {error}, got {got}"
            raise ConfigError(message, advice="correct the value, or leave the key out") from None


def _is_secret(key: str) -> bool:
    return _SECRET.fullmatch(key) is not None and _VOCABULARY.fullmatch(key) is None


def _is_short(value: Json) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value == printable(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, bool | float)
