"""Every argument of `vllm serve`, and what the guard makes of it: a list of what may be given, not of what may not.

Names are those of the parsed arguments (`--max-model-len` is `max_model_len`), of vLLM 0.26 to 0.33, which is not
served yet. `guardable` refuses an argument that has another value than vLLM's default and stands in no group of
`ALLOWED`: of one that is new, nobody has yet asked whether the guard still sees every prompt as it was calibrated.
Groups say why their members may be given.
"""

_LEFT_ALONE = {
    "who may connect, and how": """
        host port uds root_path api_key allow_credentials allowed_origins allowed_methods allowed_headers ssl_keyfile
        ssl_certfile ssl_ca_certs ssl_cert_reqs ssl_ciphers enable_ssl_refresh h11_max_incomplete_event_size
        h11_max_header_count enable_request_id_headers disable_fastapi_docs enable_offline_docs enable_server_load_tracking
        allowed_local_media_path allowed_media_domains hf_token""",
    "what the server is called, and what it writes about itself": """
        served_model_name fingerprint_mode fingerprint_value log_error_stack uvicorn_log_level disable_uvicorn_access_log
        disable_access_log_for_endpoints disable_log_stats aggregate_engine_logging logging_config
        log_level log_config_file use_tqdm_on_load show_hidden_metrics_for_version otlp_traces_endpoint
        collect_detailed_traces per_request_spec_decode_metrics kv_cache_metrics kv_cache_metrics_sample
        custom_histogram_buckets cudagraph_metrics enable_mfu_metrics enable_logging_iteration_details jit_monitor_mode
        jit_monitor_verbose enable_per_request_metrics enable_prompt_tokens_details fail_on_environ_validation""",
    "prompts and answers in the server's own log, which its operator reads": """
        enable_log_requests enable_log_outputs enable_log_deltas max_log_len""",
    "how an answer that was let through is sampled, parsed and sent": """
        seed generation_config override_generation_config use_fp64_gumbel max_logprobs logprobs_mode stream_interval
        structured_outputs_config reasoning_parser reasoning_parser_plugin reasoning_config enable_auto_tool_choice
        exclude_tools_when_tool_choice_none tool_call_parser tool_parser_plugin tool_strict_level response_role
        return_tokens_as_token_ids enable_force_include_usage sse_keep_alive_interval
        anthropic_disabled_thinking_effort""",
    "how many requests and tokens are taken, and in which order": """
        max_model_len max_num_seqs max_num_active_seqs max_num_queued_reqs max_num_queued_tokens max_num_scheduled_tokens
        long_prefill_token_threshold long_prefill_token_threshold_adaptive scheduling_policy scheduler_reserve_full_isl
        prefill_schedule_interval watermark shutdown_timeout limit_mm_per_prompt language_model_only""",
    "how the files are read that the fingerprint was taken of": """
        safetensors_prefetch_num_threads safetensors_prefetch_block_size max_parallel_loading_workers
        enable_ep_weight_filter""",
    "a file with further arguments, each of which is looked at": "config",
    "pooling, which does not generate": "pooler_config enable_flash_late_interaction max_lora_cls_labels",
}
"""Arguments that change neither what the model computes of a prompt nor which prompts the guard sees."""

_TRIED = {
    "tests/serving/conformance, tests/gpu/modes.py": """
        enforce_eager block_size num_gpu_blocks_override max_num_batched_tokens enable_chunked_prefill enable_prefix_caching
        async_scheduling distributed_executor_backend enable_lora max_loras max_lora_rank lora_modules
        gpu_memory_utilization""",
    "tests/serving/test_parallel.py, test_scaled_out.py, benchmarks": """
        tensor_parallel_size data_parallel_size api_server_count kv_cache_memory_bytes middleware worker_extension_cls
        additional_config""",
    "tests/serving/architectures": "disable_sliding_window model_impl",
    "of these some values only, which `guardable` names": """
        runner convert speculative_config pipeline_parallel_size compilation_config kv_transfer_config load_format
        prefix_caching_hash_algo""",
}
"""Arguments under which scores and actions were compared with a plain forward pass."""

_HELD_BY_THE_SELF_TEST = {
    "where the model's parts run": """
        master_addr master_port nnodes node_rank headless distributed_timeout_seconds
        cpu_distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus device_ids data_parallel_rank
        data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port
        data_parallel_backend data_parallel_hybrid_lb data_parallel_external_lb dp_sync_interval enable_expert_parallel
        all2all_backend expert_placement_strategy disable_custom_all_reduce disable_nccl_for_dp_synchronization
        enable_batch_sharded_sampling cpu_offload_gb cpu_offload_params offload_backend offload_group_size
        offload_num_in_group offload_prefetch_step offload_params""",
    "which kernels and graphs compute the same function": """
        attention_backend attention_config mamba_backend mamba_ssu_algorithm gdn_prefill_backend
        kda_prefill_backend kda_decode_backend moe_backend linear_backend sparse_indexer_topk_backend kernel_config
        ir_op_priority enable_flashinfer_autotune cudagraph_capture_sizes max_cudagraph_capture_size optimization_level
        performance_mode disable_cascade_attn""",
    "how the cache and the adapters are laid out": """
        prefix_cache_retention_interval prefix_match_unit swa_bounded_replay mamba_block_size mamba_cache_mode
        enable_mamba_shared_prefix_checkpoint disable_hybrid_kv_cache_manager max_cpu_loras fully_sharded_loras
        lora_target_modules specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras
        enable_sleep_mode enable_cumem_allocator enable_nccl_comm_suspend sleep_mode_offload_cudagraph""",
}
"""Not tried one by one: a guard that they take out, or numbers that they change, the canary's scores show at the
start."""

_COMPARED = {
    "what they come to must be what the artifact's fingerprint has": "dtype chat_template revision",
}
"""Arguments with which the model's fingerprint is taken (`server`)."""

ALLOWED = frozenset(
    name
    for groups in (_LEFT_ALONE, _TRIED, _HELD_BY_THE_SELF_TEST, _COMPARED)
    for names in groups.values()
    for name in names.split()
)
"""All that may be given."""

_REFUSED = {
    "the guard sets this itself": "worker_cls scheduler_cls",
    "the model stands in front of vLLM's arguments": "model",
    "the model would not compute what its artifact was calibrated on; calibrate a folder whose files say so": """
        hf_overrides hf_config_path config_format model_class_overrides quantization quantization_config
        allow_deprecated_quantization trust_remote_code code_revision kv_cache_dtype kv_cache_dtype_skip_layers
        mamba_cache_dtype mamba_ssm_cache_dtype enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds
        use_replayssm replayssm_buffer_len lora_dtype engram_config model_loader_extra_config
        safetensors_load_strategy pt_load_map_location enable_eplb eplb_config""",
    "vLLM would load other files than were compared with the artifact": "download_dir ignore_patterns",
    "prompts would not be rendered as those that the artifact was calibrated on": """
        tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init default_chat_template_kwargs
        chat_template_content_format trust_request_chat_template cohere_format cohere_is_reasoning_model
        interleave_mm_strings""",
    "a prompt could come as numbers that no token stands for": "enable_prompt_embeds enable_mm_embeds",
    "it opens routes, without a key, that the guard was not tried with": """
        enable_scale_out tokens_only enable_fault_tolerance fault_tolerance_config profiler_config
        enable_tokenizer_info_endpoint weight_transfer_config""",
    "the gRPC server does not run the guard's middleware": "grpc grpc_port",
    "each of vLLM's servers would listen by itself": """
        data_parallel_multi_port_external_lb data_parallel_supervisor_port dp_supervisor_probe_interval_s
        dp_supervisor_probe_timeout_s dp_supervisor_probe_failure_threshold""",
    "an engine that joins while the server runs would answer before a self-test has asked it": """
        enable_elastic_ep elastic_ep_max_dp_size""",
    "the later turns of an answer that uses vLLM's own tools were not tried": "tool_server",
    "what is computed of prompts would go where the guard was not tried: under steering it is nobody else's": """
        kv_offloading_size kv_offloading_backend kv_events_config ec_transfer_config ec_manager_config
        enable_shm_tensor_arena""",
    "answers would tell of the pass over a prompt, also of one that is blocked": """
        enable_return_routed_experts aux_output_config return_sampling_mask""",
    "it changes or forces tokens where the guard does not see it": "logits_processors enable_trace_replay watermark_config",
    "the guard would see a part of each batch, or of each prompt": """
        enable_dbo ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold prefill_context_parallel_size""",
    "the guard keeps scores by KV-cache slot, and ranks would hold slots of their own": """
        decode_context_parallel_size dcp_comm_backend dcp_q_replicate dcp_kv_cache_interleave_size
        cp_kv_cache_interleave_size""",
    "later blocks skip the prompt's tokens, which the guard reads there": "kv_sharing_fast_prefill",
    "sequence parallelism leaves the guard's taps a part of the rows": "enable_hc_sp",
    "a kernel that computes whole blocks passes the guard's taps by": "monokernel",
    "a diffusion model has no first token for the guard to wait at": "diffusion_config",
    "speculation is given whole, as --speculative-config": "spec_method spec_model spec_tokens",
    "an adapter would answer without being named": "default_mm_loras enable_tower_connector_lora",
    "it is for sleep of level 2, which a guarded server refuses": "sleep_preserve_parameter_names",
    "the guard was not tried with it": """
        io_processor_plugin renderer_num_workers ray_workers_use_nsight enable_layerwise_nvtx_tracing
        disable_chunked_mm_input trust_request_mm_kwargs media_io_kwargs mm_processor_kwargs mm_processor_cache_gb
        mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode
        mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
        mm_encoder_fp8_scale_save_margin skip_mm_profiling video_pruning_rate video_pruning_method mm_tensor_ipc
        mm_processor_device mm_ipc_gpu_memory_gb mm_device_do_normalize""",
}

REFUSED = {name: reason for reason, names in _REFUSED.items() for name in names.split()}
"""What may not have another value than vLLM's default, and why."""
