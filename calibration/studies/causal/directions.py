"""The directions that probes read, with where they read them: what causal checks move along."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.study import Skipped
from calibration.prompts.batching import Batch
from calibration.recording.places import Where


@dataclass(frozen=True, slots=True)
class Direction:
    """A linear probe of the residual stream, or a steering vector, as unit vectors by block."""

    name: str
    units: dict[int, torch.Tensor]
    """float32 `[D]` by block; the probe's weights there, normalised."""
    where: Where
    """Where it is compared. One that is read at the content is moved at all tokens."""

    def positions(self, batch: Batch) -> torch.Tensor:
        """Return the positions read, as a mask `[B, T]`."""
        if self.where == "content":
            return batch.mask.bool()
        columns = torch.arange(batch.input_ids.shape[1], device=batch.mask.device)
        return columns == batch.from_end(self.where).unsqueeze(1)


def directions(found: Fitted, hidden_size: int) -> Iterator[Direction]:
    """Yield the direction of every probe that is linear in the residual stream, and every vector that is added.

    A vector's claim is about all positions of its block, so that is where it is moved.
    """
    for probe in found.probes:
        rows = _rows(probe)
        if probe.spec.site == "resid_post" and rows.shape[1] == hidden_size:
            units = torch.nn.functional.normalize(rows, dim=1)
            readout = probe.spec.readout
            where: Where = readout.offset if readout.reads_one_token else "content"
            yield Direction(probe.spec.name, dict(zip(probe.spec.layers, units, strict=True)), where)
    for item in found.steering:
        if item.spec.operator != "add":
            continue  # it has no one direction
        units = torch.nn.functional.normalize(item.vector.float(), dim=1)
        yield Direction(f"vector {item.spec.name}", dict(zip(item.spec.layers, units, strict=True)), "content")


def required_directions(found: Fitted, hidden_size: int) -> list[Direction]:
    """Return the directions for a study that moves along them. Raises `Skipped` where there is none."""
    wanted = list(directions(found, hidden_size))
    if not wanted:
        raise Skipped("no probe is linear in the residual stream, and no steering vector is added to it")
    return wanted


def _rows(probe: FittedProbe) -> torch.Tensor:
    """Return a probe's weights as one row per block."""
    return probe.weight.reshape(len(probe.spec.layers), -1).float()
