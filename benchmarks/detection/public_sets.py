"""Public prompt sets, read from a folder of `<set>/prompts.jsonl` and put together with their names as sources.

None of them is part of the project. Each line holds `prompt`, `label`, `category` and `lang`. Left out: rows that are
not English; policy-only categories (advice, lobbying), whose harm is not in the request; copyright; a set of texts that
are no requests; repeats of a text in an earlier set.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JAILBREAK = "jailbreak"
HARMFUL = (
    "advbench",
    "catqa",
    "dangerousqa",
    "forbidden_questions",
    "gptfuzz",
    "harmbench",
    "harmfulqa",
    "malicious_instruct",
    "simplesafetytests",
    "tdc2023",
)
MIXED = ("llm_safeguard", "safety_tuned_llamas")
HARMLESS = ("alpaca", "dolly", "mt_bench", "refusal_direction", "truthfulqa")
POLICY_ONLY = frozenset(
    {
        "Political Lobbying", "Legal Opinion", "Financial Advice", "Health Consultation", "Gov Decision",
        "Tailored Financial Advice", "Political Campaigning", "Adult Content", "copyright", "Q-Harm",
    }
)  # fmt: skip
REAL = "toxicchat"
"""Real users' traffic."""
MOST = {
    "refusal_direction": 3000,
    "safety_tuned_llamas": 900,
    "harmfulqa": 600,
    "dolly": 500,
    "in_the_wild_jailbreaks": 300,
}
_MOST = 500
TO_WRAP = ("refusal_direction", "truthfulqa")
"""Harmless sets whose requests are put into jailbreak templates, beside those of all harmful ones."""
_SPARE = 0.15
"""Least share of those sets' rows that are kept for that."""
_WRAPPED = 4
"""Harmful and harmless requests put into each jailbreak template."""
_SEED = 20_260
_LANGUAGES = {"zh": "Chinese", "vi": "Vietnamese"}
_PLACE = re.compile(r"\[INSERT[^\]]*\]")

Line = dict[str, Any]


def assemble(data: Path) -> list[Line]:
    """Return prompt lines of all sets in `data`; jailbreaks are one family, `jailbreak:<set>`.

    Requests inside jailbreak templates are rows that are not drawn for their own set: none is fitted on bare.
    """
    rng, seen, lines, templates = random.Random(_SEED), set[str](), list[Line](), list[str]()  # noqa: S311 - a sample
    spare: dict[str, list[list[str]]] = {"harmful": [], "harmless": []}
    for name in (*HARMFUL, *MIXED, *HARMLESS, "in_the_wild_jailbreaks"):
        rows = [row for row in _rows(data / name / "prompts.jsonl") if row.get("category") not in POLICY_ONLY]
        templates += [row["prompt"] for row in rows if row.get("category") == "jailbreak_template"]
        rows = [row for row in rows if row.get("category") != "jailbreak_template" and _is_kept(name, row)]
        rng.shuffle(rows)
        fresh = [row for row in rows if _is_new(row["prompt"], seen)]
        wraps = name in HARMFUL or name in TO_WRAP
        drawn = min(len(fresh) - round(_SPARE * len(fresh) if wraps else 0), MOST.get(name, _MOST))
        lines += [_line(_source(name), row["prompt"], row["label"], row.get("category")) for row in fresh[:drawn]]
        if wraps:
            spare[fresh[0]["label"]].append([row["prompt"] for row in fresh[drawn:]])
    return [*lines, *_wrapped(spare, templates, rng)]


def real_traffic(data: Path) -> list[Line]:
    """Return prompt lines of real users: what an operator's log looks like."""
    return [
        _line(REAL, row["prompt"], row["label"], row.get("category")) for row in _rows(data / REAL / "prompts.jsonl")
    ]


def translated(data: Path, most: int) -> list[Line]:
    """Return harmful requests in other languages, `most` of each; the language is their category."""
    rows = [row for row in _rows(data / "catqa" / "prompts.jsonl") if row.get("category") not in POLICY_ONLY]
    return [
        _line("catqa", row["prompt"], row["label"], f"language: {language}")
        for code, language in _LANGUAGES.items()
        for row in [row for row in rows if row.get("lang") == code][:most]
    ]


def _is_new(prompt: str, seen: set[str]) -> bool:
    key = " ".join(re.findall(r"[a-z0-9]+", prompt.lower()))
    if not key or key in seen:
        return False
    seen.add(key)
    return True


def _is_kept(name: str, row: Line) -> bool:
    # The harmful rows of this one repeat four of the other sets.
    return row.get("lang", "en") == "en" and (name != "refusal_direction" or row["label"] == "harmless")


def _source(name: str) -> str:
    return {"in_the_wild_jailbreaks": f"{JAILBREAK}:in_the_wild", "refusal_direction": "alpaca"}.get(name, name)


def _wrapped(spare: dict[str, list[list[str]]], templates: list[str], rng: random.Random) -> Iterator[Line]:
    """Yield harmful requests in jailbreak templates, and harmless ones: the wrapper alone is no sign of harm."""
    for template in filter(_PLACE.search, templates):
        for label, sets in spare.items():
            for rows in rng.choices(sets, k=_WRAPPED):
                request = rng.choice(rows)
                yield _line(f"{JAILBREAK}:templates", _fill(template, request), label, None)


def _fill(template: str, request: str) -> str:
    return _PLACE.sub(lambda _: request, template)


def _line(source: str, prompt: str, label: str, category: str | None) -> Line:
    return {"prompt": prompt, "label": label, "source": source, "category": category}


def _rows(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
