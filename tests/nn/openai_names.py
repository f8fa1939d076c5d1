"""OpenAI's parameter names -> those of transformers' CLIP, to compare towers weight by weight."""

from collections.abc import Mapping

from torch import Tensor

RENAMED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
INSIDE = {".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2."}


def as_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for ``transformers.CLIPModel``."""
    renamed = {}
    for name, value in weights.items():
        start = next(start for start in RENAMED if name.startswith(start))
        name = RENAMED[start] + name[len(start) :]
        for ours, theirs in INSIDE.items():
            name = name.replace(ours, theirs)
        if ".attn.in_proj_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = part
        else:
            is_projection = start in ("visual.proj", "text_projection")  # theirs are linear layers
            renamed[name.replace(".attn.", ".self_attn.")] = value.T if is_projection else value
    return renamed
