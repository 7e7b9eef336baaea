"""Whether networks whose products are functions train in int8: a ViT and a Llama.

    python -m experiments.coverage.accuracy digits
    python -m experiments.coverage.accuracy text --data-dir TEXT

digits   a ViT of three blocks on 8 x 8 digits by AdamW; test accuracy
text     a Llama of two blocks that predicts the next character of a part of any text; test loss

int8 is in every product, those of attention and of Llama's tied head among them.

Set before the runs: n = 3 seeds; margins of 3 points, as this ViT ends some 10 points below a
ResNet, and of 0.03 nats, as in experiments/recipes.
"""

from __future__ import annotations

from torch import nn

from experiments import small_tasks
from experiments.coverage.networks import Llama, ViT

ARMS = {"fp32": "fp32", "int8": "int8"}


def vit(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """(N, in_channels, image_size, image_size) -> (N, num_classes)."""
    return ViT(
        in_channels=in_channels, image_size=image_size, classes=num_classes, patch=2, width=48,
        depth=3, heads=4,
    )  # fmt: skip


def llama(num_classes: int) -> nn.Module:
    """(N, tokens) -> (N, tokens, num_classes)."""
    return Llama(vocabulary=num_classes, width=64, depth=2, heads=4)


STUDIES = {
    "digits": small_tasks.digits(
        ARMS, seeds=3, margin=0.03, optimizer="adamw", lr=4e-3, weight_decay=0.1, clip_grad=1.0,
        epochs=6,
    )
    | {"model": "experiments.coverage.accuracy:vit"},
    "text": small_tasks.text(ARMS, seeds=3, margin=0.03)
    | {"model": "experiments.coverage.accuracy:llama"},
}  # fmt: skip

if __name__ == "__main__":
    small_tasks.main(STUDIES, __file__)
