"""Arguments of vLLM that are refused at the start: those that nobody has looked at, and those that are not guarded.

`vllm_arguments` says which may be given at all; `guarded_settings` which values some of them may not have.
"""

from argparse import Namespace

from probes.errors import ServingError
from serving.guarded_settings import require_guarded_arguments
from serving.launch.vllm_arguments import ALLOWED, REFUSED


def require_guardable(args: Namespace, defaults: Namespace) -> None:
    """Raise `ServingError` for the first of vLLM's arguments under which requests would not be guarded.

    `defaults` are the same parser's, of a command line that has nothing but the model.
    """
    for name, value in vars(args).items():
        if value != getattr(defaults, name, None) and name not in ALLOWED:
            raise ServingError(
                REFUSED.get(name, "the guard was not tried with it: it is not in its list of vLLM's arguments"),
                field=f"--{name.replace('_', '-')}",
                remedy="leave it out",
            )
    require_guarded_arguments(args)
