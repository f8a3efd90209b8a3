"""`python -m benchmarks.detection --data SETS --model MODEL`: leave one public set out, and meet it.

Goes on where it stopped.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.detection.document import document
from benchmarks.detection.public_sets import JAILBREAK, assemble
from calibration.evaluation.unseen.left_out import SEED
from calibration.evaluation.unseen.unseen_sources import unseen_sources
from calibration.fitting.training_set import TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.prompts.progress import track
from calibration.prompts.prompt_file import PromptFile, load_prompts
from calibration.prompts.template import EncodedPrompts, encode_prompts, template_suffix
from calibration.prompts.wrapping import wrap_prompts
from calibration.recording.activations import record
from calibration.recording.places import every_place
from calibration.registry import methods as installed
from calibration.registry import refitted
from probes.fingerprint import fingerprint

_MOST_TOKENS = 1024


def main(
    data: Annotated[Path, typer.Option(help="Folder of public sets, each with prompts.jsonl.")],
    model: Annotated[Path, typer.Option(help="Folder of the chat model.")],
    work: Annotated[Path, typer.Option(help="Folder for what is recorded and measured.")] = Path(".bench/detection"),
    wrap: Annotated[float, typer.Option(min=0, max=1, help="Share of prompts to train on inside templates too.")] = 0.5,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Leave out this family of sets; all in turn where none is named. Repeatable."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Fit this method; all that can be fitted without a source where none is named. Repeatable."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repeat with so many choices of what is fitted on and sets the cut.")
    ] = 1,
    write: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
) -> None:
    """Fit without each public set in turn, and measure probes and controls on it."""
    lines = "".join(f"{json.dumps(line)}\n" for line in assemble(data))
    # Named for all that decides what is recorded: another model, other sets or another share never meet this one's
    # files.
    key = hashlib.sha256(json.dumps([fingerprint(model).model_dump(), wrap, lines]).encode()).hexdigest()[:16]
    work = work / key
    work.mkdir(parents=True, exist_ok=True)
    prompts = work / "train.jsonl"
    prompts.write_text(lines)
    chat = ChatModel.load(model)
    encoded = _encode(chat, load_prompts(prompts), wrap)
    offset = len(template_suffix(chat.tokenizer))
    recording = record(chat, encoded, every_place(offset), work / "activations")
    training = TrainingSet.split(chat, encoded, recording, offset)
    tokens = training.refusal_tokens
    methods = refitted(method or list(installed()))
    found = [
        unseen_sources(training, work / f"unseen-{seed}", methods, tokens, leave_out, SEED + seed)
        for seed in track(range(seeds), "choosing anew what sets the cut")
    ]
    text = document(found, encoded)
    if write is not None:
        write.write_text(text)
    typer.echo(text)


def _encode(chat: ChatModel, file: PromptFile, share: float) -> EncodedPrompts:
    """Return the prompts that fit, and wrapped copies of those that are no jailbreaks themselves."""
    most = min(chat.context, _MOST_TOKENS)
    own = encode_prompts(chat.tokenizer, file, most, skip_long=True)
    bare = [prompt for prompt in own.prompts if prompt.source and not prompt.source.startswith(JAILBREAK)]
    wrapped = replace(file, prompts=wrap_prompts(bare, share))
    return own + encode_prompts(chat.tokenizer, wrapped, most, skip_long=True)


if __name__ == "__main__":
    typer.run(main)
