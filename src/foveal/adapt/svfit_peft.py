"""SVFit as a tuner of peft: ``get_peft_model(model, SVFitConfig(...))``, ``PeftModel.from_pretrained``, merging.

The weight stays in its layer, and what training changed is added as peft does it:

    y = x Wᵀ + b + ((x V_r) ⊙ (σ − s_r)) U_rᵀ          σ = s_r at first

which is the same map as `foveal.adapt.svfit.SVFitLinear`, and exactly the base model before training. An adapter's
folder holds σ alone, r numbers for each matrix; the SVD of the base model's weights gives the rest when it is loaded.
Importing this file makes the method known to peft: do so before ``PeftModel.from_pretrained``.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import PeftConfig, PeftType
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foveal.adapt.svfit import select_rank, thin_svd

NAME, PREFIX = "svfit", "svfit_"
QUERY_VALUE, ATTENTION = ["q_proj", "v_proj"], ["query", "value"]
TARGETS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "clip", "siglip"), QUERY_VALUE),
    **dict.fromkeys(("vit", "dinov2"), QUERY_VALUE + ATTENTION),
    **dict.fromkeys(("bert", "roberta"), ATTENTION),
    "gpt2": ["c_attn"],
}
"""Query and value projections by type of model; ViT's have changed their names within transformers 5."""


def _peft_type() -> PeftType:
    """A member of peft's list of methods, which is closed: `register_peft_method` takes no other name."""
    name = NAME.upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType(name)


SVFIT = _peft_type()


@dataclass
class SVFitConfig(PeftConfig):
    """What is adapted, and how many singular values of it.

    Attributes:
        target_modules: names of layers, or a regular expression; by default query and value of known models.
        exclude_modules: names or a regular expression of layers to leave out.
        rank: of every layer, at most min(out, in) of each; None chooses by ``energy`` and ``power``.
        energy, power: see `foveal.adapt.svfit.select_rank`.
        modules_to_save: modules that are trained and saved whole, such as a new head.
        deterministic_factors: save U_r and V_r too, for weights with equal singular values or other machines' SVD.
        ranks: of the layers that were adapted, by name; filled in, so that loading never has to choose again.

    Raises:
        ValueError: as `select_rank`, or for a rank below 1.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    rank: int | None = None
    energy: float = 0.99
    power: float = 2
    modules_to_save: list[str] | None = None
    deterministic_factors: bool = False
    ranks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SVFIT
        select_rank(torch.ones(1), self.energy, power=self.power)
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"SVFitConfig(rank={self.rank}): must be at least 1, or None to choose by energy")
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = sorted(set(self.target_modules))


class SVFitLayer(nn.Module, BaseTunerLayer):
    """A linear layer with the singular values of each adapter; U, s and Vᵀ are kept beside them."""

    adapter_layer_names = ("svfit_sigma",)
    other_param_names = ("svfit_u", "svfit_s", "svfit_vh")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SVFitConfig, key: str) -> None:
        super().__init__()
        base = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(f"target_modules: {key} is a {type(base).__name__}; must be nn.Linear or Conv1D")
        self.base_layer = base_layer
        self.out_features, self.in_features = self._base_matrix().shape
        self.svfit_sigma = nn.ParameterDict({})
        factors = [BufferDict({}, persistent=config.deterministic_factors) for _ in self.other_param_names]
        self.svfit_u, self.svfit_s, self.svfit_vh = factors
        self._disable_adapters, self.merged_adapters = False, []
        self.update_layer(adapter_name, config, key)

    def update_layer(self, adapter_name: str, config: SVFitConfig, key: str) -> None:
        """One more adapter."""
        weight = self._base_matrix()
        u, s, vh = thin_svd(weight)
        rank = config.ranks.get(key) or config.rank or select_rank(s, config.energy, power=config.power)
        config.ranks[key] = rank = min(rank, len(s))
        self.svfit_u[adapter_name] = u[:, :rank].to(weight.dtype).contiguous()
        self.svfit_s[adapter_name] = s[:rank].to(weight.dtype)
        self.svfit_vh[adapter_name] = vh[:rank].to(weight.dtype).contiguous()
        self.svfit_sigma[adapter_name] = nn.Parameter(self.svfit_s[adapter_name].clone())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _base_matrix(self) -> Float[Tensor, "out in"]:
        base: Any = self.get_base_layer()
        return base.weight.mT if isinstance(base, Conv1D) else base.weight

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the weight, in the layout in which the layer stores it."""
        wide = torch.promote_types(self.svfit_sigma[adapter].dtype, torch.float32)
        change = self._change(adapter).to(wide)
        delta = (self.svfit_u[adapter].to(wide) * change) @ self.svfit_vh[adapter].to(wide)
        return delta.mT if isinstance(self.get_base_layer(), Conv1D) else delta

    def _change(self, adapter: str) -> Float[Tensor, " r"]:
        return self.svfit_sigma[adapter] - self.svfit_s[adapter].to(self.svfit_sigma[adapter].device)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active (or named) adapters to the weight; ``safe_merge`` refuses what is not finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.svfit_sigma:
                continue
            weight: Any = self.get_base_layer().weight
            merged = (weight + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not bool(merged.isfinite().all()):
                raise ValueError(f"adapter {name!r} makes weights that are not finite: it is broken")
            weight.copy_(merged)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged adapters out of the weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight: Any = self.get_base_layer().weight
            weight.sub_(self.get_delta_weight(name))

    def forward(self, x: Float[Tensor, "*b in"], *args: Any, **kwargs: Any) -> Float[Tensor, "*b out"]:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.svfit_sigma:
                inputs = self._cast_input_dtype(x, self.svfit_vh[name].dtype)
                scaled = F.linear(inputs, self.svfit_vh[name]) * self._change(name)
                result = result + F.linear(scaled, self.svfit_u[name]).to(result.dtype)
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """peft can turn the adapter into one of LoRA: it adds to the weight."""
        return True

    def __repr__(self) -> str:
        return f"{NAME}.{super().__repr__()}"


class SVFitModel(BaseTuner):
    """A model with SVFit layers; peft makes it in ``get_peft_model``."""

    prefix = PREFIX
    tuner_layer_cls = SVFitLayer
    target_module_mapping = TARGETS

    def _create_and_replace(
        self,
        config: Any,  # an SVFitConfig
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SVFitLayer):
            target.update_layer(adapter_name, config, current_key)
            return
        layer = SVFitLayer(target, adapter_name, config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def _register() -> None:
    """Also after a reload of this file."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    for known in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
        known.pop(SVFIT, None)
    register_peft_method(name=NAME, config_cls=SVFitConfig, model_cls=SVFitModel, prefix=PREFIX)


_register()
