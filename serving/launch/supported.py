"""Which versions of vLLM are served: those with which the conformance suite ran (docs/compatibility.md)."""

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from probes.errors import ServingError

VERSIONS = SpecifierSet(">=0.26,<0.33")
"""The same as `foreguard[gpu]` asks for."""
RANGE = "0.26 to 0.32"


def is_supported(version: str) -> bool:
    """Return whether `version`, as vLLM gives its own, lies in the range; an unreadable one does not."""
    try:
        return VERSIONS.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def require_supported_vllm() -> None:
    """Raise `ServingError` unless vLLM is there in a version that the guard ran with."""
    try:
        from vllm.version import __version__ as version
    except ImportError as error:
        raise ServingError(
            "vLLM is not installed", field="vllm", remedy="install `foreguard[gpu]`, or run `make setup` on a CPU"
        ) from error
    if not is_supported(version):
        raise ServingError(
            f"version {version} is outside {RANGE}, with which the guard was run; it might not fire in this one",
            field="vllm",
            remedy='install one of them: `pip install "vllm>=0.26,<0.33"`',
        )
