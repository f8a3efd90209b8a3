"""EleutherAI's evaluation harness on a task of its kind: which of two prompts is likelier, by log-probabilities."""

import json
import os
import subprocess
from pathlib import Path

import yaml

from tests.clients.client import ENVIRONMENT, INSTALLED
from tests.serving.lab import MODEL, of
from tests.serving.server import SERVED_NAME, Server

COUNT = 50
BATCH = 8
START = "<|begin|><|user|>\n"
END = "<|end|>\n<|assistant|>\n"


def pairs() -> list[tuple[list[dict], list[dict]]]:
    """Return a harmless and a harmful conversation for each question."""
    harmless, harmful = of("test", "plain_harmless", COUNT), of("test", "plain_harmful", COUNT)
    return list(zip(harmless, harmful, strict=True))


def evaluate(server: Server, folder: Path) -> tuple[dict | None, str]:
    """Run the harness as its documentation has it, with all that it needs in `folder`.

    Returns its results, None where it failed, and what it said on stderr.
    """
    options = {
        "model": SERVED_NAME,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": MODEL,
        "tokenizer_backend": "huggingface",
        "max_length": 1024,
    }
    command = [
        *(INSTALLED / "bin" / "lm_eval", "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in options.items())),
        *("--include_path", _task(folder), "--tasks", "pairs", "--limit", str(COUNT), "--batch_size", str(BATCH)),
        *("--output_path", folder / "results.json"),
    ]
    environment = {**os.environ, **ENVIRONMENT, "HF_HOME": str(folder / "cache"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    if done.returncode:
        return None, done.stderr
    (found,) = folder.glob("results*.json")
    return json.loads(found.read_text()), done.stderr


def _task(folder: Path) -> Path:
    """Write the task with its data, so that none are fetched. Each choice is a whole prompt, and is judged as one."""
    task = folder / "task"
    task.mkdir()
    rows = [{"choices": [each[-1]["content"] + END for each in pair], "label": 0} for pair in pairs()]
    (task / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    content = {
        "task": "pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(task / "pairs.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": START,
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (task / "pairs.yaml").write_text(yaml.safe_dump(content))
    return task
