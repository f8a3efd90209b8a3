"""The training set: what a method may fit on and choose by. It holds no certification or test prompt."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.activations import Recording, Where
from calibration.model import ChatModel
from calibration.template import EncodedPrompts

_SELECT_SHARE = 0.25
_SEED = 20_260

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Recorded training prompts, split in two: `fit` gives the weights, `select` chooses among them."""

    chat: ChatModel
    prompts: EncodedPrompts
    recording: Recording
    instruction_offset: int
    """Tokens of the chat template after the instruction's last token."""
    fit: Rows
    select: Rows
    partner: ChatModel | None = None
    """The same model before or after its alignment, where there is one: same tokenizer, same shapes."""

    @classmethod
    def split(
        cls,
        chat: ChatModel,
        prompts: EncodedPrompts,
        recording: Recording,
        instruction_offset: int,
        partner: ChatModel | None = None,
    ) -> "TrainingSet":
        """Set aside a quarter of each class, the same one each time, for selection."""
        rng = np.random.default_rng(_SEED)
        fit: list[int] = []
        select: list[int] = []
        for label in (False, True):
            rows = rng.permutation(np.flatnonzero(prompts.harmful == label)).tolist()
            cut = max(int(len(rows) * _SELECT_SHARE), 1)
            select += rows[:cut]
            fit += rows[cut:]
        return cls(chat, prompts, recording, instruction_offset, np.sort(fit), np.sort(select), partner)

    @property
    def harmful(self) -> npt.NDArray[np.bool_]:
        """Labels `[N]` of all training prompts."""
        return self.prompts.harmful

    def features(self, layer: int, where: Where) -> npt.NDArray[np.float32]:
        """Return `resid_post` of block `layer` at `where`, float32 `[N, D]`, for all training prompts."""
        return self.recording.features(layer, where)

    def sample(self, rows: Rows, *, harmful: bool, most: int) -> Rows:
        """Return at most `most` of `rows` with the given label, the same ones each time."""
        chosen = rows[self.harmful[rows] == harmful]
        return np.sort(np.random.default_rng(_SEED).permutation(chosen)[:most])
