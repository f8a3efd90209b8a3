"""`python -m benchmarks.detection --data SETS --model MODEL`: leave one public set out, and meet it.

Goes on where it stopped.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.detection.document import document
from benchmarks.detection.public_sets import assemble
from calibration.activations import record
from calibration.methods.training import TrainingSet
from calibration.model import ChatModel
from calibration.prompts import load_prompts
from calibration.refusal_metric import find_refusal_tokens, first_token_log_probs
from calibration.template import encode_prompts, template_suffix
from calibration.unseen_sources import unseen_sources

_MOST_FOR_TOKENS = 128


def main(
    data: Annotated[Path, typer.Option(help="Folder of public sets, each with prompts.jsonl.")],
    model: Annotated[Path, typer.Option(help="Folder of the chat model.")],
    work: Annotated[Path, typer.Option(help="Folder for what is recorded and measured.")] = Path(".bench/detection"),
    write: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
) -> None:
    """Fit without each public set in turn, and measure probes and controls on it."""
    work.mkdir(parents=True, exist_ok=True)
    prompts = work / "train.jsonl"
    if not prompts.exists():
        prompts.write_text("".join(f"{json.dumps(line)}\n" for line in assemble(data)))
    chat = ChatModel.load(model)
    encoded = encode_prompts(chat.tokenizer, load_prompts(prompts), min(chat.context, 1024), skip_long=True)
    offset = len(template_suffix(chat.tokenizer))
    recording = record(chat, encoded, (*range(offset + 1), "mean"), work / "activations")
    training = TrainingSet.split(chat, encoded, recording, offset)
    sides = [training.sample(training.fit, harmful=label, most=_MOST_FOR_TOKENS) for label in (False, True)]
    sample = encoded.subset(np.concatenate(sides))
    tokens = find_refusal_tokens(first_token_log_probs(chat, sample), sample.harmful)
    text = document(unseen_sources(training, work / "unseen", tokens), encoded)
    if write is not None:
        write.write_text(text)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
