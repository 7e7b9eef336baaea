"""Models of timm and transformers at small sizes, and their inputs."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from experiments.coverage.architectures import TRANSFORMERS

_SMALL = {
    "vocab_size": 99, "hidden_size": 32, "n_embd": 32, "d_model": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "num_attention_heads": 4, "n_head": 4,
    "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "d_ff": 48, "ffn_dim": 48,
    "word_embed_proj_dim": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "num_mel_bins": 8, "max_source_positions": 20, "image_size": 32, "patch_size": 8,
    "num_local_experts": 4, "state_size": 4, "projection_dim": 16, "pad_token_id": 0,
    "conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (3, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "max_position_embeddings": 40,
    "eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 1, "max_target_positions": 20,
}  # fmt: skip
_SIZES = {
    "input_ids": (7,), "decoder_input_ids": (5,), "input_features": (8, 40),
    "pixel_values": (3, 32, 32), "input_values": (400,),
}  # fmt: skip

#: the words for a model's size, the smallest first
_WORDS = (
    "test", "atto", "femto", "pico", "nano", "xxt", "xxs", "xx_small", "micro", "mini", "p", "t",
    "tiny", "xt", "xs", "xsmall", "x_small", "s0", "s1", "s", "small", "b0", "a0", "xxsmall", "18",
    "lite0", "10", "12", "14", "26ts", "m0", "nf", "1", "002", "b1", "base",
)  # fmt: skip
#: what makes a model of one kind or another narrow and shallow
_NARROW: tuple[dict[str, Any], ...] = (
    {"depth": 2, "embed_dim": 48, "num_heads": 4},
    {"depths": (1, 1, 1, 1), "embed_dim": 16},
    {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"depth": 2},
    {},
)


def of_transformers(name: str, attention: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """An architecture, small, and its inputs by name."""
    import transformers  # type: ignore[import-not-found]

    config, model, more, shapes = TRANSFORMERS[name]
    kind = getattr(transformers, config)
    known = set(vars(kind())) | set(getattr(kind, "attribute_map", {}))
    small = {key: value for key, value in _SMALL.items() if key in known}
    if name == "Mamba":
        del small["conv_kernel"]
    if name == "CLIP":
        parts = transformers.CLIPTextConfig, transformers.CLIPVisionConfig
        for key, part in zip(("text_config", "vision_config"), parts, strict=True):
            small[key] = {k: v for k, v in _SMALL.items() if k in vars(part())}
    torch.manual_seed(0)
    net = getattr(transformers, model)(kind(**{**small, **more, "attn_implementation": attention}))
    return net, {
        key: torch.randint(3, 99, (2, *_SIZES[key])) if key.endswith("ids")
        else torch.randn(2, *_SIZES[key])
        for key in shapes
    }  # fmt: skip


def smallest(file: str) -> str:
    """A model of a file of timm's, by the word for its size."""
    import timm  # type: ignore[import-not-found]

    def rank(name: str) -> tuple[int, int, str]:
        found = (i for i, word in enumerate(_WORDS) if re.search(rf"(^|_){word}(_|\d|$)", name))
        return next(found, len(_WORDS)), len(name), name

    return min(timm.list_models(module=file), key=rank)


def of_timm(name: str, batch: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, as narrow and shallow as it can be asked to be, on the smallest image that it takes
    in training."""
    import timm

    failed: Exception | None = None
    for given in _NARROW:
        for size in (64, 96, 128, None):
            for own in ({"img_size": size}, {}) if size else ({},):
                try:
                    torch.manual_seed(0)
                    net = timm.create_model(name, num_classes=10, **given, **own)
                    channels, usual, _ = net.default_cfg.get("input_size", (3, 224, 224))
                    inputs = {"x": torch.randn(batch, channels, size or usual, size or usual)}
                    net(**inputs)
                    return net, inputs
                except Exception as error:  # no such setting, or not of this size
                    failed = error
    assert failed is not None
    raise failed
