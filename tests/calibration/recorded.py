"""Training sets of the tiny models: prompt lines, encoded and passed through the model once."""

from dataclasses import replace

from tiny import write_prompts

from calibration.fitting.training_set import TrainingSet
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts, template_suffix
from calibration.prompts.wrapping import wrap_prompts
from calibration.recording.activations import record
from calibration.recording.places import every_place


def training_set(chat, folder, lines, wrap=0.0):
    """Recorded prompts for the model, and wrapped copies of a share of them."""
    file = load_prompts(write_prompts(folder / "train.jsonl", lines))
    copies = replace(file, prompts=wrap_prompts(file.prompts, wrap))
    prompts = encode_prompts(chat.tokenizer, file, chat.context)
    prompts += encode_prompts(chat.tokenizer, copies, chat.context, skip_long=True)
    offset = len(template_suffix(chat.tokenizer))
    recording = record(chat, prompts, every_place(offset), folder / "activations")
    return TrainingSet.split(chat, prompts, recording, offset)


def refusing_by(training, *tokens):
    """The same training set, with these tokens as the start of the model's refusals; with none it refuses nothing."""
    known = replace(training)
    vars(known)["refusal_tokens"] = tokens
    return known
