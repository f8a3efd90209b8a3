"""Environment variables under which a server is not guarded: each is refused at the start, with the reason.

A test reads the names that the installed vLLM knows (`vllm/envs.py`) and fails for one that nobody has looked at.
"""

import os
from pathlib import Path

from probes.errors import ServingError

_OFF = ("", "0", "false")
_LOADS_CODE = "it loads code into the API server, some of it outside the guard"
_OTHER_NUMBERS = "the model would not compute what its artifact was calibrated on"
_OTHER_FILES = "vLLM would read other files than the artifact was compared with"

REFUSED = {
    "VLLM_USE_RUST_FRONTEND": "the Rust front end does not run the guard's middleware",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "it writes responses to the log",
    "VLLM_SERVER_DEV_MODE": "it opens routes, without a key, that change the model and the guard while they serve",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "adapters that nobody has named could be loaded while the server runs",
    "VLLM_ENABLE_COHERE_API": "the guard was not tried on its routes",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "whoever reaches vLLM's sockets could have it run code",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "clients could give two requests one name, which ends the engine",
    "VLLM_MODEL_REDIRECT_PATH": _OTHER_FILES,
    "VLLM_USE_MODELSCOPE": _OTHER_FILES,
    "VLLM_USE_FASTOKENS": "prompts would be tokenised by another program than the artifact's were",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "prompts could be longer than the model was made for",
    "VLLM_MOE_ROUTING_SIMULATION_STRATEGY": _OTHER_NUMBERS,
    "VLLM_MARLIN_INPUT_DTYPE": _OTHER_NUMBERS,
    "VLLM_HUMMING_ONLINE_QUANT_CONFIG": _OTHER_NUMBERS,
    "VLLM_HUMMING_INPUT_QUANT_CONFIG": _OTHER_NUMBERS,
    "CUSTOM_FASTAPI_PING_HANDLER": _LOADS_CODE,
    "CUSTOM_FASTAPI_INVOCATION_HANDLER": _LOADS_CODE,
    "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": _LOADS_CODE,
    "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS": _LOADS_CODE,
    "CUSTOM_PRE_PROCESS": _LOADS_CODE,
    "CUSTOM_POST_PROCESS": _LOADS_CODE,
    "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "the guard was not tried with its sessions",
}
"""What must be off, or not set, and why."""

NEEDED = {
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "Ray's older executor calls the model runner past the guard's worker",
}
"""What must not be off, as it is not by default, and why."""

_SET = {
    # No usage statistics leave an on-box server.
    "VLLM_NO_USAGE_STATS": "1",
}


def prepare_environment() -> None:
    """Raise `ServingError` for a variable, or a script, that leads around the guard; then set what a server needs."""
    for name, reason in REFUSED.items():
        if _value(name) not in _OFF:
            raise _refusal(name, reason)
    for name, reason in NEEDED.items():
        if _value(name) in _OFF[1:]:
            raise _refusal(name, reason)
    _require_no_script()
    os.environ.update(_SET)


def _value(name: str) -> str:
    return os.environ.get(name, "").strip().lower()


def _refusal(name: str, reason: str) -> ServingError:
    return ServingError(f"is {os.environ[name]}, but {reason}", field=name, remedy=f"unset {name}")


def _require_no_script() -> None:
    # vLLM's server looks for one: model_hosting_container_standards/sagemaker/sagemaker_loader.py.
    folder = Path(os.environ.get("SAGEMAKER_MODEL_PATH", "/opt/ml/model/"))
    script = folder / os.environ.get("CUSTOM_SCRIPT_FILENAME", "model.py")
    if script.is_file():
        raise ServingError(
            f"vLLM would take it for SageMaker's: {_LOADS_CODE}", field=str(script), remedy="give the file another name"
        )
