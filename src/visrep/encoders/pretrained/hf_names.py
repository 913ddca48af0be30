"""Names of the weights of `transformers` models, of releases 4 and 5, to the official ones of ours."""

from __future__ import annotations

import re

from visrep.encoders.pretrained.convert_vit import Weights

RULES = (
    (r"^(encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"^(encoder\.)?(layernorm|norm)\.", "norm."),
    (r"^(encoder\.)?embeddings\.patch_embeddings\.(proj\.|projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"\.(layernorm_before|norm1)\.", ".norm1."),
    (r"\.(layernorm_after|norm2)\.", ".norm2."),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj|proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.(intermediate\.dense|mlp\.up_proj)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.down_proj)\.", ".mlp.fc2."),
)
GATED = ((r"\.mlp\.gate_proj\.", ".mlp.w1."), (r"\.mlp\.fc1\.", ".mlp.w2."), (r"\.mlp\.fc2\.", ".mlp.w3."))
HEADS = ("pooler.", "predictor.")


def official_names(weights: Weights) -> Weights:
    """The same weights by their official names, without heads; a name that no rule knows stays as it is."""
    gated = any(".mlp.gate_proj." in name for name in weights)
    rules = [(re.compile(pattern), new) for pattern, new in (*RULES, *(GATED if gated else ()))]
    renamed: Weights = {}
    for name, value in weights.items():
        if name.startswith(HEADS):
            continue
        for pattern, new in rules:
            name = pattern.sub(new, name)
        renamed[name] = value
    return renamed


def resnet_name(name: str) -> str:
    """What a weight of `transformers`' ResNet is called here, as in torchvision."""
    parts = name.removeprefix("embedder.embedder.").removeprefix("encoder.stages.").split(".")
    convolution, last = parts[-2] == "convolution", parts[-1]
    if name.startswith("embedder."):
        return f"{'conv1' if convolution else 'bn1'}.{last}"
    stage, block, kind = int(parts[0]) + 1, parts[2], parts[3]
    before = f"layer{stage}.{block}"
    if kind == "shortcut":
        return f"{before}.downsample.{0 if convolution else 1}.{last}"
    number = int(parts[4]) + 1
    return f"{before}.{'conv' if convolution else 'bn'}{number}.{last}"
