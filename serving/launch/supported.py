"""Which versions of vLLM are served: those in which the guard's seams were seen to hold (docs/compatibility.md says how)."""

from probes.errors import ServingError

FIRST = (0, 26)
LAST = (0, 33)
"""The last minor version whose sources have every seam."""
RANGE = f"{FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]}"


def is_supported(version: str) -> bool:
    """Return whether `version`, as vLLM gives its own, lies in the range; an unreadable one does not."""
    parts = version.split(".")
    try:
        minor = int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return False
    return FIRST <= minor <= LAST


def require_supported_vllm() -> None:
    """Raise `ServingError` unless vLLM is there in a version whose seams are known to hold."""
    try:
        from vllm.version import __version__ as version
    except ImportError as error:
        raise ServingError(
            "vLLM is not installed", field="vllm", remedy="install `foreguard[gpu]`, or run `make setup` on a CPU"
        ) from error
    if not is_supported(version):
        raise ServingError(
            f"version {version} is outside {RANGE}, in which the guard was tried; it might not fire in this one",
            field="vllm",
            remedy=f'install one of them: `pip install "vllm>={FIRST[0]}.{FIRST[1]},<{LAST[0]}.{LAST[1] + 1}"`',
        )
