"""The partner: the same model before or after its alignment, against which it is contrasted."""

from dataclasses import replace
from pathlib import Path

from calibration.model.chat_model import ChatModel
from probes.errors import ModelError

_REMEDY = "name a checkpoint of the same model: its base, an earlier fine-tune, or one whose refusals were removed"


def load_partner(chat: ChatModel, folder: Path, *, dtype: str = "auto", device: str = "cpu") -> ChatModel:
    """Load the partner of `chat`; it is asked in the tokens of `chat`. Raises `ModelError`, naming what differs.

    Neurons and directions of two models can be compared only where one was trained from the other, which shows in equal
    shapes and an equal vocabulary.
    """
    partner = ChatModel.load(folder, dtype=dtype, device=device)
    for what, ours, theirs in (
        ("architecture", type(chat.model).__name__, type(partner.model).__name__),
        ("decoder blocks", chat.num_layers, partner.num_layers),
        ("hidden size", chat.hidden_size, partner.hidden_size),
        ("shapes of the weights", _shapes(chat), _shapes(partner)),
        ("vocabulary", chat.tokenizer.get_vocab(), partner.tokenizer.get_vocab()),
    ):
        if ours != theirs:
            shown = f" ({ours} and {theirs})" if isinstance(ours, str | int) else ""
            raise ModelError(f"differs from the model in its {what}{shown}", field="partner", remedy=_REMEDY)
    return replace(partner, tokenizer=chat.tokenizer)


def _shapes(chat: ChatModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in chat.model.named_parameters()}
