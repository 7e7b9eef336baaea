"""Models of timm and transformers at their real sizes, on the meta device, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

META = torch.device("meta")
#: a transformers configuration's class, its model's, and what is called with what
_TOKENS = {"input_ids": (1, 128)}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {}, _TOKENS),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {}, _TOKENS),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}, _TOKENS),
    "Mistral": ("MistralConfig", "MistralForCausalLM", {}, _TOKENS),
    "Gemma": ("GemmaConfig", "GemmaForCausalLM", {}, _TOKENS),
    "BERT": ("BertConfig", "BertForMaskedLM", {}, _TOKENS),
    "T5": (
        "T5Config", "T5ForConditionalGeneration", {},
        {**_TOKENS, "decoder_input_ids": (1, 64)},
    ),
    "OPT": ("OPTConfig", "OPTForCausalLM", {}, _TOKENS),
    "Bloom": ("BloomConfig", "BloomForCausalLM", {}, _TOKENS),
    "Falcon": ("FalconConfig", "FalconForCausalLM", {}, _TOKENS),
    "Mamba": (
        "MambaConfig", "MambaForCausalLM", {"num_hidden_layers": 2}, {"input_ids": (1, 16)},
    ),
    "Mixtral": (
        "MixtralConfig", "MixtralForCausalLM",
        {"num_hidden_layers": 2}, _TOKENS,
    ),
    "Whisper": (
        "WhisperConfig", "WhisperForConditionalGeneration", {},
        {"input_features": (1, 80, 3000), "decoder_input_ids": (1, 64)},
    ),
    "ViT": ("ViTConfig", "ViTForImageClassification", {}, {"pixel_values": (1, 3, 224, 224)}),
    "Wav2Vec2": (
        "Wav2Vec2Config", "Wav2Vec2ForCTC", {"apply_spec_augment": False},
        {"input_values": (1, 16000)},
    ),
    "CLIP": (
        "CLIPConfig", "CLIPModel", {}, {"input_ids": (1, 77), "pixel_values": (1, 3, 224, 224)},
    ),
}  # fmt: skip

#: what makes a model, and its inputs by name, of a batch of this size
Made = Callable[[int], tuple[nn.Module, dict[str, Tensor]]]


def of_transformers() -> dict[str, Made]:
    """The architectures in their default configurations."""
    import transformers  # type: ignore[import-not-found]

    def made(batch: int, config: str, model: str, more: dict[str, Any], shapes: Any) -> Any:
        with META:
            net = getattr(transformers, model)(getattr(transformers, config)(**more))
            return net, {key: _drawn(key, (batch, *rest)) for key, (_, *rest) in shapes.items()}

    return {name: lambda batch, own=own: made(batch, *own) for name, own in TRANSFORMERS.items()}  # type: ignore[misc]


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.long if name.endswith("ids") else torch.float32)


def of_timm(each: int = 2) -> dict[str, Made]:
    """So many models of each of timm's files: the first and the last by name, and those between at
    equal distances."""
    import timm  # type: ignore[import-not-found]

    def made(batch: int, name: str) -> Any:
        with META:
            net = timm.create_model(name)
            size = net.default_cfg.get("input_size", (3, 224, 224))
            return net, {"x": torch.zeros(batch, *size)}

    found: dict[str, Made] = {}
    for file in timm.list_modules():
        names = timm.list_models(module=file)
        steps = [round(i * (len(names) - 1) / max(each - 1, 1)) for i in range(each)]
        for name in dict.fromkeys(names[step] for step in steps if names):
            found[name] = lambda batch, name=name: made(batch, name)  # type: ignore[misc]
    return found
