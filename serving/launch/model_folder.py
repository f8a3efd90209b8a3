"""Where a served model's files are: the folder itself, or the local copy of a hub repository."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from probes.errors import ModelError


def model_folder(model: str, revision: str | None = None) -> Path:
    """Return the folder that holds `model`. Raises `ModelError` when there is none on this machine."""
    if (folder := Path(model)).is_dir():
        return folder
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, FileNotFoundError, ValueError) as error:
        raise ModelError(
            f"{model!r} is neither a folder nor a model in the local Hugging Face cache",
            field="model",
            remedy="correct the path, or download the model first (`hf download MODEL`)",
        ) from error
