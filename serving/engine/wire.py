"""What the guard's parts send each other, and on which of vLLM's own objects it rides.

No sockets and no side channels: the messages are ordered and routed by vLLM itself, the same for tensor and data
parallelism and for several API servers.
"""

SCORES = "foreguard_scores"
"""Attribute of `ModelRunnerOutput`: `{request_id: [K] floats, or an Unscored reason}` for prompts finished in the step."""

STEERING = "foreguard_steering"
"""Attribute of `SchedulerOutput`: `{request_id: [S] coefficients}` for steered requests in the step."""

EXTRA = "foreguard"
"""Key of `additional_config` (the guard's configuration), of `SamplingParams.extra_args` (what a caller may ask of the
gate) and of `EngineCoreOutput.kv_transfer_params` (the verdict)."""

STOP_BLOCKED = "foreguard:blocked"
"""`stop_reason` of a request that the gate ended."""
