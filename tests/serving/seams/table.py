"""Every seam of vLLM's internals that the guard rests on, as data: by our file, in the words of `sources`.

`MODULE NAME` says that a module has a name, `MODULE CLASS.NAME(a, b)` that a class has an attribute, or a method that
takes such parameters in this order, and `MODULE CLASS.METHOD -> NAME` that a method calls a name: what is overridden or
wrapped must be called. `A or B` holds where either does: `serving/core/versions.py` makes up for what differs.
"""

_SCHEDULER = "vllm.v1.core.sched.scheduler Scheduler"
_REQUEST = "vllm.v1.request Request"
_OUTPUT = "vllm.v1.outputs ModelRunnerOutput"
_STEP = "vllm.v1.core.sched.output SchedulerOutput"
_KV = "vllm.v1.kv_cache_interface"
_V1 = "vllm.v1.worker.gpu_model_runner GPUModelRunner"
_V2 = "vllm.v1.worker.gpu.model_runner GPUModelRunner"
_V1_BATCH = "vllm.v1.worker.gpu_input_batch InputBatch"
_V2_BATCH = "vllm.v1.worker.gpu.input_batch InputBatch"
_WORKER = "vllm.v1.worker.gpu_worker Worker"
_CPU_WORKER = "vllm.v1.worker.cpu_worker CPUWorker"
_LINEAR = "vllm.model_executor.layers.linear RowParallelLinear"
_STARTUP = "vllm.entrypoints.common.startup cli_env_setup or vllm.entrypoints.serve.utils.api_utils cli_env_setup"
_APP = "vllm.entrypoints.launchers.api_server.app_state"
_OLD_APP = "vllm.entrypoints.openai.api_server"

SEAMS: dict[str, tuple[str, ...]] = {
    "serving/core/gate.py": (
        f"{_SCHEDULER}.add_request(request)",
        f"{_SCHEDULER}._update_request_as_session(session, update)",
        f"{_SCHEDULER}.schedule",
        f"{_SCHEDULER}.update_from_output(scheduler_output, model_runner_output)",
        f"{_SCHEDULER}.update_from_output -> _update_request_with_output",
        f"{_SCHEDULER}._update_request_with_output(request, new_token_ids)",
        f"{_SCHEDULER}.update_from_output -> _free_request",
        f"{_SCHEDULER}._free_request(request)",
        f"{_SCHEDULER}.hash_block_size",
        f"{_SCHEDULER}.prev_step_scheduled_req_ids",
        f"{_SCHEDULER}.running",
        f"{_SCHEDULER}.requests",
        f"{_SCHEDULER}.vllm_config",
        "vllm.v1.core.sched.async_scheduler AsyncScheduler._update_request_with_output(request, new_token_ids)",
        f"{_REQUEST}.status",
        f"{_REQUEST}.stop_reason",
        f"{_REQUEST}.resumable",
        "vllm.v1.request RequestStatus.FINISHED_STOPPED",
        "vllm.v1.request RequestStatus.PREEMPTED",
        "vllm.v1.engine EngineCoreOutput.kv_transfer_params",
        "vllm.v1.engine EngineCoreOutputs.outputs",
    ),
    "serving/core/policies.py": (
        f"{_REQUEST}.lora_request",
        f"{_REQUEST}.mm_features",
        f"{_REQUEST}.sampling_params",
        "vllm.lora.request LoRARequest.lora_name",
        "vllm.lora.request LoRARequest.lora_path",
        "vllm.sampling_params SamplingParams.extra_args",
    ),
    "serving/core/private_blocks.py": (
        f"{_REQUEST}.block_hashes",
        f"{_REQUEST}._block_hasher",
        f"{_REQUEST}.update_block_hashes",
    ),
    "serving/core/case.py": (f"{_REQUEST}.request_id",),
    "serving/core/answer_end.py": (
        f"{_REQUEST}.max_tokens",
        f"{_REQUEST}.num_output_tokens",
        "vllm.sampling_params SamplingParams.eos_token_id",
        "vllm.sampling_params SamplingParams.stop_token_ids",
    ),
    "serving/core/constraints.py": tuple(
        f"vllm.sampling_params SamplingParams.{field}"
        for field in (
            "structured_outputs",
            "allowed_token_ids",
            "bad_words",
            "logit_bias",
            "min_tokens",
            "ignore_eos",
            "repetition_penalty",
        )
    ),
    "serving/core/versions.py": (
        f"{_SCHEDULER}._preempt_request(request, timestamp, drop_stale_output) or "
        f"{_SCHEDULER}._preempt_request(request, timestamp)",
        f"{_REQUEST}.drop_stale_output or {_REQUEST}.async_tokens_to_discard",
        f"{_REQUEST}.num_in_flight_tokens",
        f"{_REQUEST}.num_output_placeholders",
        f"{_OUTPUT}.sampled_token_ids",
        f"{_OUTPUT}.req_id_to_index",
        f"{_OUTPUT}.prompt_logprobs_dict",
    ),
    "serving/core/orders.py": (
        f"{_SCHEDULER}.kv_cache_config",
        f"{_SCHEDULER}.kv_cache_manager",
        f"{_SCHEDULER}.connector",
        "vllm.v1.core.kv_cache_manager KVCacheManager.get_block_ids(request_id)",
        "vllm.v1.core.kv_cache_manager KVCacheManager.allocate_slots"
        "(request, num_new_tokens, num_new_computed_tokens, num_external_computed_tokens)",
        f"{_SCHEDULER}.schedule -> allocate_slots",
        f"{_STEP}.num_scheduled_tokens",
        f"{_STEP}.kv_cache_block_copies",
        "vllm.v1.core.kv_cache_utils KVCacheBlockCopy.src_block_id",
        "vllm.v1.core.kv_cache_utils KVCacheBlockCopy.dst_block_id",
        f"{_REQUEST}.num_prompt_tokens",
        f"{_REQUEST}.num_computed_tokens",
    ),
    "serving/core/external_blocks.py": (
        # Where it is missing, a server with a connector does not start.
        f"{_SCHEDULER}._get_local_prefix_cache_hit(request) or {_SCHEDULER}.connector",
        f"{_SCHEDULER}.schedule -> get_num_new_matched_tokens",
        "vllm.v1.core.kv_cache_manager KVCacheManager.evict_blocks(block_ids)",
        "vllm.v1.core.kv_cache_manager KVCacheBlocks.blocks",
    ),
    "serving/worker/kv_slots.py": (
        f"{_KV} KVCacheConfig.num_blocks",
        f"{_KV} FullAttentionSpec.block_size",
        f"{_KV} KVCacheSpec.page_size_bytes",
    ),
    "serving/scoring_group.py": (
        f"{_KV} KVCacheConfig.kv_cache_groups",
        f"{_KV} KVCacheGroupSpec.kv_cache_spec",
        f"{_KV} FullAttentionSpec",
        f"{_KV} UniformTypeKVCacheSpecs.kv_cache_specs",
    ),
    "serving/worker/runner_v1.py": (
        f"{_V1}._prepare_inputs(scheduler_output, num_scheduled_tokens)",
        f"{_V1}.execute_model -> _prepare_inputs",
        f"{_V1}.input_batch",
        f"{_V1_BATCH}.req_id_to_index",
        f"{_V1_BATCH}.num_computed_tokens_cpu",
        f"{_V1_BATCH}.block_table",
        "vllm.v1.worker.block_table MultiGroupBlockTable.__getitem__",
        "vllm.v1.worker.block_table BlockTable.slot_mapping",
    ),
    "serving/worker/runner_v2.py": (
        f"{_V2}.prepare_attn(input_batch)",
        f"{_V2}.execute_model -> prepare_attn",
        f"{_V2}.block_tables",
        "vllm.v1.worker.gpu.block_table BlockTables.slot_mappings",
        f"{_V2_BATCH}.req_ids",
        f"{_V2_BATCH}.query_start_loc_np",
        f"{_V2_BATCH}.num_computed_tokens_np",
    ),
    "serving/worker/dry_run.py": (
        f"{_V1}._dummy_run(num_tokens, allow_microbatching, is_profile)",
        f"{_V2}._dummy_run(num_tokens, skip_attn, is_profile)",
    ),
    "serving/worker/worker.py": (
        *(
            f"{worker}.{method}"
            for worker in (_WORKER, _CPU_WORKER)
            for method in (
                "load_model(load_dummy_weights)",
                "determine_available_memory",
                "get_kv_cache_spec",
                "cache_config",
                "initialize_from_config(kv_cache_config)",
                "execute_model(scheduler_output)",
                "sample_tokens(grammar_output)",
                "reload_weights",
                "start_weight_update",
                "update_weights",
                "use_v2_model_runner",
                "model_runner",
                "vllm_config",
            )
        ),
        f"{_STEP}.total_num_scheduled_tokens",
        f"{_V1}.get_model",
        f"{_V2}.get_model",
        "vllm.config.model ModelConfig.get_total_num_hidden_layers",
        "vllm.config.model ModelConfig.dtype",
        "vllm.config.scheduler SchedulerConfig.max_num_batched_tokens",
        "vllm.config.scheduler SchedulerConfig.async_scheduling",
        "vllm.config.parallel ParallelConfig.pipeline_parallel_size",
        "vllm.config.cache CacheConfig.kv_cache_memory_bytes",
        "vllm.config.vllm VllmConfig.additional_config",
    ),
    "serving/worker/guarded_pass.py": (
        "vllm.distributed.parallel_state get_pp_group",
        "vllm.distributed.parallel_state get_tp_group",
        "vllm.distributed.parallel_state GroupCoordinator.broadcast_object(obj, src)",
        "vllm.distributed.parallel_state GroupCoordinator.rank_in_group",
        "vllm.distributed.parallel_state GroupCoordinator.is_last_rank",
        "vllm.distributed.communication_op tensor_model_parallel_all_reduce(input_)",
    ),
    "serving/worker/pending_scores.py": ("vllm.v1.outputs AsyncModelRunnerOutput.get_output",),
    "serving/worker/pipeline_stages.py": (
        "vllm.sequence IntermediateTensors.tensors",
        f"{_V1}.execute_model(scheduler_output, intermediate_tensors)",
        f"{_V2}.execute_model(scheduler_output, intermediate_tensors)",
        f"{_WORKER}.execute_model -> execute_model",
    ),
    "serving/worker/decoder.py": (
        "vllm.model_executor.layers.attention_layer_base AttentionLayerBase",
        "vllm.model_executor.models.utils PPMissingLayer",
        "vllm.compilation.wrapper TorchCompileWithNoGuardsWrapper",
    ),
    "serving/worker/down_projection.py": (
        f"{_LINEAR}.input_size",
        f"{_LINEAR}.input_is_parallel",
        f"{_LINEAR}.tp_rank",
        f"{_LINEAR}.tp_size",
        "vllm.model_executor.layers.fused_moe MoERunner",
        "vllm.model_executor.layers.fusion.quant_activation get_input_quant_key(layer) or "
        "vllm.model_executor.layers.fusion.quant_activation expose_input_quant_key(layer, kernel)",
    ),
    "serving/worker/tap.py": (
        "vllm.utils.torch_utils direct_register_custom_op(op_name, op_func, mutates_args, fake_impl, target_lib)",
    ),
    "serving/offline/recorder.py": (
        f"{_V1}.requests",
        f"{_V1_BATCH}.req_ids",
        f"{_V1_BATCH}.num_prompt_tokens",
        "vllm.config.model ModelConfig.get_hidden_size",
        "vllm.v1.engine.llm_engine LLMEngine.collective_rpc(method, args)",
    ),
    "serving/api/verdict_reader.py": (
        "vllm.v1.engine.async_llm AsyncLLM.generate(prompt, sampling_params, request_id, lora_request)",
        "vllm.outputs RequestOutput.kv_transfer_params",
        "vllm.outputs RequestOutput.prompt_token_ids",
        "vllm.outputs CompletionOutput.token_ids",
        "vllm.outputs CompletionOutput.stop_reason",
        "vllm.outputs CompletionOutput.finish_reason",
    ),
    "serving/api/hidden_logprobs.py": (
        "vllm.outputs RequestOutput.prompt_logprobs",
        "vllm.outputs RequestOutput.prompt_token_ids",
        "vllm.outputs CompletionOutput.routed_experts",
        "vllm.sampling_params SamplingParams.logprobs",
        "vllm.logprobs Logprob.logprob",
    ),
    "serving/api/selftest.py": (
        "vllm.v1.engine.async_llm AsyncLLM.collective_rpc(method)",
        "vllm.v1.engine.async_llm AsyncLLM.generate(data_parallel_rank)",
        "vllm.v1.engine.async_llm AsyncLLM.engine_core",
        "vllm.v1.engine.async_llm AsyncLLM.model_config",
        "vllm.v1.engine.core_client DPLBAsyncMPClient.core_engines",
        "vllm.config.model ModelConfig.get_vocab_size",
    ),
    "serving/api/assembly.py": (
        f"{_APP} init_app_state -> OpenAIServingModels or {_OLD_APP} init_app_state -> OpenAIServingModels",
        "vllm.entrypoints.openai.models.serving OpenAIServingModels.base_model_paths",
        "vllm.entrypoints.launchers.cli_args FrontendArgs.enable_force_include_usage or "
        "vllm.entrypoints.common.cli_args FrontendArgs.enable_force_include_usage or "
        "vllm.entrypoints.openai.cli_args FrontendArgs.enable_force_include_usage",
        "vllm.v1.engine.async_llm AsyncLLM.is_sleeping",
    ),
    "serving/api/keys.py": (
        "vllm.entrypoints.launchers.cli_args FrontendArgs.api_key or vllm.entrypoints.common.cli_args "
        "FrontendArgs.api_key or vllm.entrypoints.openai.cli_args FrontendArgs.api_key",
    ),
    "serving/api/beams.py": (
        "vllm.entrypoints.generate.beam_search.online BeamSearchOnlineMixin.beam_search(prompt, request_id, params)",
    ),
    "serving/api/placement.py": (
        "vllm.entrypoints.serve.middleware.register init_entrypoints_middleware -> add_middleware or "
        "vllm.entrypoints.openai.api_server build_app -> add_middleware",
    ),
    "serving/worker/resolved_config.py": (
        *(
            f"vllm.config.model ModelConfig.{name}"
            for name in ("model", "tokenizer", "dtype", "quantization", "hf_config", "hf_overrides", "hf_config_path")
        ),
        "vllm.config.model ModelConfig.trust_remote_code",
        "vllm.config.model ModelConfig.enable_prompt_embeds",
        "vllm.config.model ModelConfig.logits_processors",
        "vllm.config.cache CacheConfig.cache_dtype",
    ),
    "serving/guarded_settings.py": (
        *(
            f"vllm.engine.arg_utils EngineArgs.{name}"
            for name in (
                "runner",
                "convert",
                "speculative_config",
                "pipeline_parallel_size",
                "compilation_config",
                "kv_transfer_config",
                "load_format",
                "prefix_caching_hash_algo",
            )
        ),
        *(
            f"vllm.config.vllm VllmConfig.{name}"
            for name in ("speculative_config", "kv_transfer_config", "kv_events_config", "ec_transfer_config")
        ),
        *(
            f"vllm.config.parallel ParallelConfig.{name}"
            for name in (
                "pipeline_parallel_size",
                "decode_context_parallel_size",
                "prefill_context_parallel_size",
                "enable_dbo",
                "ubatch_size",
            )
        ),
        "vllm.config.model ModelConfig.runner_type",
        "vllm.config.model ModelConfig.convert_type",
        "vllm.config.speculative SpeculativeConfig.method",
        "vllm.config.kv_transfer KVTransferConfig.kv_connector",
        "vllm.config.kv_transfer KVTransferConfig.kv_connector_module_path",
        "vllm.config.kv_events KVEventsConfig.enable_kv_cache_events",
        "vllm.config.load LoadConfig.load_format",
        "vllm.config.cache CacheConfig.prefix_caching_hash_algo",
        "vllm.config.cache CacheConfig.kv_sharing_fast_prefill",
        "vllm.config.parallel ParallelConfig.enable_hc_sp or vllm.config.compilation PassConfig.enable_sp",
    ),
    "serving/launch/server.py": (
        _STARTUP,
        "vllm.version __version__",
        "vllm.entrypoints.cli.serve ServeSubcommand.subparser_init(subparsers)",
        "vllm.entrypoints.cli.serve ServeSubcommand.validate(args)",
        "vllm.entrypoints.cli.serve ServeSubcommand.cmd(args)",
        "vllm.utils.argparse_utils FlexibleArgumentParser",
        "vllm.engine.arg_utils EngineArgs.worker_cls",
        "vllm.engine.arg_utils EngineArgs.scheduler_cls",
        "vllm.engine.arg_utils EngineArgs.additional_config",
    ),
}
