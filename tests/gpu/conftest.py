"""Tests that need an NVIDIA GPU: `make gpu` runs them, `make test` skips them where there is none."""

import pytest
import torch

from tests.serving.conftest import artifact, artifact_folder, reference

__all__ = ["artifact", "artifact_folder", "reference"]


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
