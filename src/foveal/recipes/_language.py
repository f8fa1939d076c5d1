"""A small language model that has read nothing but short texts about pictures."""

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.lab import Run
from foveal.train import FitConfig, fit


def tiny_llama(run: Run, ids: Int[Tensor, "n l"], vocabulary: int) -> LlamaForCausalLM:
    """A Llama of 2 layers of width 128, trained on the rows of ``ids`` for 300 steps of 64."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    model = run.build(LlamaForCausalLM, config)

    def loss(model: LlamaForCausalLM, batch: list[Tensor]) -> Tensor:
        return model(input_ids=batch[0], labels=batch[0]).loss

    fit(model, TensorDataset(ids), steps=run.steps(300), loss=loss, config=FitConfig(lr=2e-3), on=run)
    return model
