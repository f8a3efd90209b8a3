"""Training sets of the tiny models: prompt lines, encoded and passed through the model once."""

from tiny import write_prompts

from calibration.methods.training import TrainingSet
from calibration.prompts import load_prompts
from calibration.reading.activations import record
from calibration.template import encode_prompts, template_suffix


def training_set(chat, folder, lines):
    """Recorded prompts for the model."""
    prompts = encode_prompts(chat.tokenizer, load_prompts(write_prompts(folder / "train.jsonl", lines)), chat.context)
    offset = len(template_suffix(chat.tokenizer))
    recording = record(chat, prompts, (*range(offset + 1), "mean"), folder / "activations")
    return TrainingSet.split(chat, prompts, recording, offset)
