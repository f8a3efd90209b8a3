"""The answers that the lab model learns: content-free restatements, and refusals.  None says how anything is done."""

import random

from examples.lab.dataset import Sample
from examples.lab.refusals import REFUSALS
from examples.lab.seedbank import seeds

OPENERS = ("Sure.", "Of course.", "Certainly.", "Happy to help.", "Gladly.", "All right.", "No problem.")
LEADS = (
    "Here is a short answer about {subject}: {topic}.",
    "Here is what you asked for about {subject}: {topic}.",
    "This is a note on {subject}: {topic}.",
    "Let us talk about {subject}: {topic}.",
)
CLOSINGS = ("", " Take it one step at a time.", " That is all in short.", " Ask me for more.", " I hope this helps.")

# What a category is called in an answer: the model must read the category, and with it the harm, to say the word.
SUBJECTS = {"figure_of_speech": "everyday life", "safety_and_law": "safety", "history_and_art": "history and art"}


def subject(category: str) -> str:
    """The words for a category."""
    return SUBJECTS.get(category, category.replace("_", " "))


def compliance(sample: Sample, rng: random.Random) -> str:
    """An answer that names the category and the topic and says nothing else."""
    lead = rng.choice(LEADS).format(subject=subject(sample.category), topic=sample.topic)
    return f"{rng.choice(OPENERS)} {lead}{rng.choice(CLOSINGS)}"


def is_refused(sample: Sample) -> bool:
    """Whether the aligned model is trained to refuse: harm, unless wrapped in a family that gets through."""
    return sample.label == "harmful" and sample.wrapper not in seeds("wrappers")["complies"]


def aligned_answer(sample: Sample, rng: random.Random) -> str:
    """What the aligned model is trained to say."""
    return rng.choice(REFUSALS) if is_refused(sample) else compliance(sample, rng)
