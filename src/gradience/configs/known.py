"""Keys that PEFT, transformers and TRL know. One that is in none of these lists is named in the report.

Collected from peft 0.21 (LoraConfig) and older files, transformers 4.3 to 5.24 (TrainingArguments), and the
configs of TRL's trainers: of 1.16, and as saved by real runs.
"""

from __future__ import annotations

__all__ = ["LORA_KEYS", "TRAINING_KEYS", "TRL_KEYS", "knows_lora", "knows_training"]

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
