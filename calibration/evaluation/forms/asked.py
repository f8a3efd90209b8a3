"""Requests asked in forms: written, tokenised, passed through the model, and scored turn by turn as they are served."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from calibration.model.chat_model import ChatModel
from calibration.prompts.changed_letters import KINDS
from calibration.prompts.chat_template import ChatTemplate
from calibration.prompts.forms.forms import Form
from calibration.prompts.forms.texts import PROSE
from calibration.prompts.forms.writer import NoSuchForm, Writer, Written
from calibration.prompts.template import EncodedPrompts
from calibration.recording.request_scores import score_turns
from probes.pooling import Scores
from probes.scoring import ProbeBank
from probes.template import Ending

_SEED = 20_260


@dataclass(frozen=True, slots=True)
class Answered:
    """What the probes made of n requests that were asked."""

    rows: npt.NDArray[np.int64]
    """Which requests they are, `[n]`."""
    closed: Scores
    """Each probe's largest score over the closed turns, `[n, K]`; minus infinity where there are none."""
    open: Scores
    """Each probe's score of the open turn, `[n, K]`; minus infinity where there is none, or the probe does not read
    it."""
    ends: npt.NDArray[np.str_]
    """How the prompts end, `[n]`."""
    num_turns: npt.NDArray[np.int64]
    """`[n]`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The single-turn requests of a split, to be asked in other forms."""

    chat: ChatModel
    bank: ProbeBank
    requests: dict[bool, tuple[str, ...]] = field(default_factory=dict)
    """By whether they are harmful."""
    asides: tuple[str, ...] = ()
    """Short harmless requests, for the turns beside the one that counts."""

    @classmethod
    def of(cls, chat: ChatModel, bank: ProbeBank, prompts: EncodedPrompts, most: int) -> "Asked":
        """Take at most `most` requests of each class, the same ones each time."""
        single = [prompt for prompt in prompts.prompts if len(prompt.messages) == 1]
        rng = np.random.default_rng(_SEED)
        requests: dict[bool, tuple[str, ...]] = {}
        for harmful in (False, True):
            texts = [prompt.messages[0].content for prompt in single if prompt.is_harmful == harmful]
            requests[harmful] = tuple(texts[index] for index in np.sort(rng.permutation(len(texts))[:most]))
        shortest = sorted(requests[False], key=len)
        return cls(chat, bank, requests, tuple(shortest[: max(len(shortest) // 2, 1)]))

    def with_changed_letters(self, most: int, longest: int) -> "Asked":
        """Return at most `most` of the harmful requests of at most `longest` letters, with their letters changed."""
        chance, kinds = random.Random(_SEED), list(KINDS.values())  # noqa: S311 - reproducible, not secret
        short = [request for request in self.requests[True] if len(request) <= longest][:most]
        changed = tuple(kinds[index % len(kinds)](request, chance) for index, request in enumerate(short))
        return replace(self, requests={True: changed, False: self.requests[False]})

    @property
    def can_ask(self) -> bool:
        """Whether there are requests of both classes."""
        return all(self.requests.values())

    def ask(self, forms: Sequence[Form], *, harmful: bool) -> "Answered":
        """Ask each request once, in the `forms` by turns; those that the chat template cannot write are left out."""
        token_ids = self._token_ids(forms, self.requests[harmful])
        title = f"asking {', '.join(form.title for form in forms)}"
        scored = score_turns(self.chat, self.bank, list(token_ids.values()), title=title)
        ends = [self._ending(ids) for ids in token_ids.values()]
        parts = [self._parts(own, ending) for own, ending in zip(scored, ends, strict=True)]
        shape = (-1, len(self.bank.names))
        return Answered(
            rows=np.array(list(token_ids), dtype=np.int64),
            closed=np.array([closed for closed, _ in parts], np.float32).reshape(shape),
            open=np.array([left for _, left in parts], np.float32).reshape(shape),
            ends=np.array(ends, dtype=np.str_),
            num_turns=np.array([len(own) for own in scored], dtype=np.int64),
        )

    def _ending(self, token_ids: Sequence[int]) -> Ending:
        return self.bank.template.ending(token_ids) if self.bank.template else Ending.TEMPLATE

    def _parts(self, turns: Scores, ending: Ending) -> tuple[Scores, Scores]:
        """Return the largest scores of the closed turns, and those of the open one, each `[K]`."""
        none = np.full(turns.shape[1], -np.inf, np.float32)
        if ending is Ending.TEMPLATE:
            return turns.max(axis=0), none
        read_open = np.array([not probe.readout.reads_one_token for probe in self.bank.probes])
        return (turns[:-1].max(axis=0) if len(turns) > 1 else none), np.where(read_open, turns[-1], none)

    def _token_ids(self, forms: Sequence[Form], requests: Sequence[str]) -> dict[int, tuple[int, ...]]:
        template, prose = ChatTemplate(self.chat.tokenizer), PROSE[len(PROSE) // 2 :]
        writer = Writer(template, self.asides, prose, np.random.default_rng(_SEED))
        written: dict[int, Written] = {}
        for row, request in enumerate(requests):
            try:
                written[row] = forms[row % len(forms)].write(writer, request)
            except NoSuchForm:
                continue
        if not written:
            return {}
        encoded = self.chat.tokenizer([each.text for each in written.values()], add_special_tokens=False).input_ids
        pairs = zip(written.items(), encoded, strict=True)
        cut = {row: tuple(ids[: len(ids) - each.cut]) for (row, each), ids in pairs}
        return {row: ids for row, ids in cut.items() if 0 < len(ids) <= self.chat.context}
