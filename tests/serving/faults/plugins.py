"""Plugins of somebody else's: vLLM loads each into all of its processes, and each takes a part of the guard out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUP = "vllm.general_plugins"


def install_plugin(folder: Path, name: str) -> None:
    """Make a distribution in `folder` whose entry point is the plugin `name` of this module."""
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {__name__}:{name}\n")


def with_plugin(name: str, folder: Path) -> dict[str, str]:
    """Return an environment in which vLLM finds a plugin that is installed in `folder`, or none."""
    if not name:
        return {}
    install_plugin(folder, name)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]), "VLLM_PLUGINS": name}


def _change_configuration(change: Callable[[Any], None]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config

    def create_and_change(self: Any, *args: Any, **options: Any) -> Any:
        config = create(self, *args, **options)
        change(config)
        return config

    EngineArgs.create_engine_config = create_and_change


def swap_scheduler() -> None:
    """Configure vLLM's own scheduler."""
    _change_configuration(lambda config: setattr(config.scheduler_config, "scheduler_cls", None))


def swap_worker() -> None:
    """Configure vLLM's own worker."""
    own = "vllm.v1.worker.cpu_worker.CPUWorker"
    _change_configuration(lambda config: setattr(config.parallel_config, "worker_cls", own))


def override_model() -> None:
    """Have the model compute with another constant than its files say."""
    _change_configuration(lambda config: setattr(config.model_config.hf_config, "rms_norm_eps", 0.1))


def override_load_format() -> None:
    """Have vLLM make up the weights."""
    _change_configuration(lambda config: setattr(config.load_config, "load_format", "dummy"))


def patch_scheduler() -> None:
    """Give the scheduler another `update_from_output`, which knows vLLM's own methods and no one else's."""
    from vllm.v1.core.sched.scheduler import Scheduler

    update = Scheduler.update_from_output

    def update_as_vllm_s_own(self: Any, *args: Any, **options: Any) -> Any:
        kind, self.__class__ = type(self), Scheduler
        try:
            return update(self, *args, **options)
        finally:
            self.__class__ = kind

    Scheduler.update_from_output = update_as_vllm_s_own


def drop_middleware() -> None:
    """Build the API server without any middleware that was asked for."""
    from vllm.entrypoints.launchers import app

    init = app.init_entrypoints_middleware

    def init_without(args: Any, *rest: Any, **options: Any) -> Any:
        args.middleware = []
        return init(args, *rest, **options)

    app.init_entrypoints_middleware = init_without


def hear_live() -> None:
    """Take nothing out: add a model that hears."""
    from tests.serving.hearing_live import register

    register()
