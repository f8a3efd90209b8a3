"""Activations and scores through a serving engine: probes are fitted on the numbers that serving will give them, and
thresholds are set on the scores that its guard will.

Calibration knows no engine: whoever has one registers it under the entry point group `foreguard.engines`.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from safetensors.torch import load_file

from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import refusal_metrics
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts, read_template
from calibration.recording.places import Where, content_positions
from calibration.recording.request_scores import RequestScores
from calibration.recording.shards import Shard, Tensors
from probes.artifact import Artifact
from probes.errors import CalibrationError, ServingError

GROUP = "foreguard.engines"
IN_PROCESS = "hf"
"""Transformers in this process: no engine."""

_AT_A_TIME = 256
"""Prompts handed to the engine together, for a bar to move."""

Read = Callable[[Sequence[Sequence[int]], Sequence[Where], Sequence[Sequence[int]], Path], None]
"""Passes prompts, as token ids, through the engine and writes a safetensors file: `<place>.<layer>` `[N, D]`, or
`scores` `[N, K]` where the engine was opened with an artifact. The third argument has the positions of each prompt's
content."""

OpenEngine = Callable[[Path, int, Sequence[str], Path, Path | None], AbstractContextManager[Read]]
"""What an entry point names: from a model folder, the longest prompt's tokens, the engine's own arguments, a log, and
the folder of an artifact whose probes are to score, if any."""


@dataclass(frozen=True, slots=True)
class EngineSource:
    """The source that asks a serving engine."""

    open_engine: OpenEngine
    model: Path
    options: tuple[str, ...]
    folder: Path
    """For the engine's log, for the file through which it answers, and for the probes that it scores by."""
    chat: ChatModel
    """The same model in this process."""

    @classmethod
    def named(
        cls, engine: str, arguments: Sequence[str], *, model: Path, dtype: str, folder: Path, chat: ChatModel
    ) -> "EngineSource":
        """Return the source that asks the engine registered as `engine`, with its own `arguments`."""
        return cls(find_engine(engine), model, ("--dtype", dtype, *arguments), folder, chat)

    def read(
        self, prompts: EncodedPrompts, where: Sequence[Where], shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Tensors]]:
        """Yield the shards in their order. The engine makes its own batches of a shard's prompts."""
        if not shards:
            return
        with self._opened(prompts, None) as answered:
            for shard in shards:
                yield shard, answered(shard.rows, where) | {"rows": torch.tensor(shard.rows)}

    def score(
        self, prompts: EncodedPrompts, probes: Artifact, refusal_tokens: Sequence[int], title: str
    ) -> RequestScores:
        """Score the prompts by the guard's own sensor.

        The model's refusal metric is Transformers': nothing is cut by it. Raises `CalibrationError` naming a prompt
        whose score is not a number.
        """
        found = RequestScores.empty(len(prompts.prompts), len(probes.manifest.probes))
        folder = self.folder / "engine-probes"
        shutil.rmtree(folder, ignore_errors=True)
        probes.save(folder)
        order = np.argsort(prompts.lengths, kind="stable")
        with self._opened(prompts, folder) as answered:
            for rows in track(np.array_split(order, -(-len(order) // _AT_A_TIME)), title):
                found.scores[rows] = answered(rows.tolist(), ())["scores"].numpy()
        found.require_finite(prompts)
        if refusal_tokens:
            found.refusal[:] = refusal_metrics(self.chat, prompts, refusal_tokens)
        return found

    @contextmanager
    def _opened(
        self, prompts: EncodedPrompts, probes: Path | None
    ) -> Iterator[Callable[[Sequence[int], Sequence[Where]], Tensors]]:
        """Run the engine, for as long as the block lasts, to answer for rows of the prompts."""
        template = read_template(self.chat.tokenizer)
        answer, log = self.folder / "engine.partial", self.folder / "engine.log"
        with self.open_engine(self.model, int(prompts.lengths.max()), self.options, log, probes) as read:

            def answered(rows: Sequence[int], where: Sequence[Where]) -> Tensors:
                asked = [prompts.token_ids[row] for row in rows]
                content = [list(content_positions(template, ids)) for ids in asked] if "content" in where else []
                read(asked, where, content, answer)
                tensors: Tensors = load_file(answer)
                answer.unlink()
                return tensors

            yield answered


@contextmanager
def engine_folder() -> Iterator[Path]:
    """Yield a folder of its own for an engine's files; it stays where the engine fails, as the error names the log in
    it.
    """
    folder, kept = Path(mkdtemp(prefix="foreguard-engine-")), False
    try:
        yield folder
    except ServingError:
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder)


def require_engine(name: str, arguments: Sequence[str]) -> None:
    """Raise `CalibrationError` where `name` is neither `hf` nor an engine, or where `hf` is given an engine's
    arguments.
    """
    if name != IN_PROCESS:
        find_engine(name)
    elif arguments:
        raise CalibrationError("no engine was named", field="--engine-args", remedy="name it, as in --engine vllm")


def find_engine(name: str) -> OpenEngine:
    """Return the engine registered as `name`. Raises `CalibrationError` that names those there are."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise CalibrationError(
            f"{name!r} is no engine",
            field="--engine",
            remedy=f"choose one of {', '.join([IN_PROCESS, *sorted(found)])}",
        )
    engine: OpenEngine = found[name].load()
    return engine
