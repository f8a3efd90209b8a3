"""The worker of the parity runs: the sensor as it serves, whose probes are the unit vectors, so that it reads
activations.
"""

import torch
from safetensors.torch import save_file

from probes.errors import ModelError
from probes.manifest import EMBEDDINGS, Probe
from probes.scoring import ProbeBank
from probes.steering import SteeringBank
from serving.offline.recorder import Gathered, RecordingWorker
from serving.worker.decoder import find_decoder
from serving.worker.down_projection import down_projection
from serving.worker.dry_run import dry_run_of
from serving.worker.sensor import install


class ParityWorker(RecordingWorker):
    """A recording worker whose model bears the sensor too: before and behind all blocks, and at neurons where there
    are any.
    """

    def load_model(self, **options):
        super().load_model(**options)
        num_layers, hidden_size = self.foreguard_size
        model, dry_run = self.model_runner.get_model(), dry_run_of(self.model_runner, is_v2=self.use_v2_model_runner)
        self.without_neurons = {}
        self.widths = dict(self._widths(find_decoder(model, num_layers, dry_run).blocks))
        self.bank = unit_vectors(num_layers, hidden_size, self.widths)
        max_tokens = self.vllm_config.scheduler_config.max_num_batched_tokens
        self.sensor = install(model, num_layers, max_tokens, self.bank, SteeringBank((), {}, ()), dry_run)

    def _widths(self, blocks):
        for layer, width in enumerate(self.vllm_config.additional_config["widths"]):
            try:
                if width:
                    down_projection(blocks[layer], layer, width)
                    yield layer, width
            except ModelError as error:
                self.without_neurons[layer] = error.problem

    def initialize_from_config(self, kv_cache_config):
        super().initialize_from_config(kv_cache_config)
        self.kv_cache = [type(group.kv_cache_spec).__name__ for group in kv_cache_config.kv_cache_groups]

    def foreguard_begin(self, num_prompts, where, content):
        super().foreguard_begin(num_prompts, where, content)
        self.read = Gathered(num_prompts, where, content, 1, self.sensor.parts.shape[1])

    def foreguard_write(self, path):
        """Write `<place>` `[N, (1 + L) * D + widths]`: the embeddings, every block's stream, every block's neurons."""
        save_file({name.partition(".")[0]: values for name, values in self.read.tensors().items()}, path)

    def foreguard_about(self):
        """Say what was found in the model."""
        return {
            "vllm_class": type(self.model_runner.get_model()).__name__,
            "kv_cache": self.kv_cache,
            "widths": self.widths,
            "without_neurons": self.without_neurons,
        }

    def _gather(self, step, gathered):
        super()._gather(step, gathered)
        recorded = self.foreguard_streams.values
        # The recorder sees what the sensor sees; compiled, one of them may see it before it is rounded.
        rounding = 2 * torch.finfo(self.vllm_config.model_config.dtype).eps
        for row, before, length, own in self._prompt_rows(step):
            read = torch.from_numpy(self.bank.add_up(self.sensor.parts[own].numpy()))
            streams = read[:, self.foreguard_size[1] :][:, : recorded.shape[1]]
            torch.testing.assert_close(streams, recorded[own], rtol=rounding, atol=rounding)
            self.read.add(row, before, length, read)


def unit_vectors(num_layers, hidden_size, widths):
    """Return probes whose channels are the activations themselves: embeddings, streams of all blocks, neurons."""
    streams = range(EMBEDDINGS, num_layers)
    probes = [Probe(name=f"stream_{n + 1}", method="unit", layers=(n,), channels=hidden_size) for n in streams]
    probes += [
        Probe(name=f"neurons_{n}", method="unit", site="mlp_neurons", width=width, layers=(n,), channels=width)
        for n, width in widths.items()
    ]
    return ProbeBank.of(probes, {f"probe.{each.name}.weight": torch.eye(each.channels)[None] for each in probes})
