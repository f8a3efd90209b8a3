"""What Transformers computes, one prompt at a time: the stream before the first block and after every one, and the
input of every down-projection.
"""

import torch

from calibration.model.hooks import stream_of
from calibration.model.structure import find_blocks, find_down_projections, neurons_of
from probes.errors import ModelError
from probes.manifest import EMBEDDINGS


class Reference:
    """A Hugging Face model whose blocks and down-projections were found as calibration finds them, by structure."""

    def __init__(self, model):
        config = model.config.get_text_config()
        self.model, self.hidden_size = model, config.hidden_size
        self.blocks = find_blocks(model, config.num_hidden_layers, config.hidden_size)
        self.down, self.without_neurons = {}, {}
        for layer, block in enumerate(self.blocks):
            try:
                [self.down[layer]] = find_down_projections(model, [block], config.hidden_size)
            except ModelError as error:
                self.without_neurons[layer] = error.problem

    @property
    def widths(self):
        """How many neurons each block has, 0 where it has none that every token passes, `[L]`."""
        return [
            neurons_of(self.down[layer], self.hidden_size) if layer in self.down else 0
            for layer in range(len(self.blocks))
        ]

    @torch.no_grad()
    def read(self, token_ids):
        """Return `(site, layer)` to activations `[T, W]`, float32."""
        found = {}

        def keep_stream(layer):
            def hook(_block, _args, output):
                found["resid_post", layer] = stream_of(output).reshape(len(token_ids), -1).float()

            return hook

        def keep_neurons(layer):
            def hook(_projection, args):
                found["mlp_neurons", layer] = args[0].reshape(len(token_ids), -1).float()

            return hook

        def keep_embeddings(_block, args, kwargs):
            stream = args[0] if args else kwargs["hidden_states"]
            found["resid_post", EMBEDDINGS] = stream.reshape(len(token_ids), -1).float()

        handles = [self.blocks[0].register_forward_pre_hook(keep_embeddings, with_kwargs=True)]
        handles += [block.register_forward_hook(keep_stream(layer)) for layer, block in enumerate(self.blocks)]
        handles += [module.register_forward_pre_hook(keep_neurons(layer)) for layer, module in self.down.items()]
        try:
            self.model(torch.tensor([token_ids]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found
