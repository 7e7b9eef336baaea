"""Small networks whose products are functions, as libraries write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.coverage.networks import Llama, ViT


class Unfused(nn.Module):
    """Attention as two products, of one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out, self.drop = (
            nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(-1))
        return self.out((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def unfused_vit() -> ViT:
    model = vit()
    for block in model.blocks:
        block.attention = Unfused(16, 2)
    return model


def vit() -> ViT:
    return ViT(in_channels=1, image_size=8, classes=5, patch=4, width=16, depth=2, heads=2)


def llama() -> Llama:
    return Llama(vocabulary=20, width=16, depth=1, heads=2)


class Window(nn.Module):
    """Swin's attention: within windows, with a bias of relative places and a shift's mask (Liu et
    al. 2021, arXiv 2103.14030)."""

    places: Tensor

    def __init__(self, width: int = 8, heads: int = 2, side: int = 2) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.weight = nn.Parameter(torch.randn(3 * width, width) / width**0.5)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn((2 * side - 1) ** 2, heads))
        at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        apart = at[:, None] - at[None] + side - 1
        self.register_buffer("places", apart[..., 0] * (2 * side - 1) + apart[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.roll((1, 1), (1, 2)).view(n, h // self.side, self.side, w // self.side, self.side, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.side**2, c)
        q, k, v = F.linear(x, self.weight).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = self.bias[self.places].permute(2, 0, 1)
        first = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
        again = torch.baddbmm(mask.repeat(len(x), 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT)
        found = first + torch.bmm(again.softmax(-1), v.flatten(0, 1)).view_as(first)
        return self.out(found.transpose(1, 2).flatten(2)).mean((0, 1))  # type: ignore[no-any-return]


class Standardized(nn.Conv2d):
    """Qiao et al. 2019, arXiv 1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), True), self.weight.var((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardizedResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Standardized(1, 8, 3, padding=1, bias=False)
        self.first, self.second = (Standardized(8, 8, 3, padding=1, groups=g) for g in (1, 4))
        self.norms = nn.ModuleList(nn.GroupNorm(2, 8) for _ in range(2))
        self.skip, self.head = Standardized(8, 8, 1), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.skip(x) + self.second(F.relu(self.norms[0](self.first(x))))
        return F.linear(self.norms[1](x).mean((2, 3)), self.head)


class Mixer(nn.Module):
    """Tokens and channels mixed in turn by einsum (Tolstikhin et al. 2021, arXiv 2105.01601)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = (nn.Parameter(torch.randn(n, n) / n**0.5) for n in (6, 8))
        self.norm = nn.LayerNorm(8)
        self.ends = nn.Parameter(torch.randn(6, 8, 3, 2) / 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.einsum("btc,ts->bsc", self.norm(x), self.tokens)
        x = x + torch.einsum("b t c, c d -> b t d", F.gelu(self.norm(x)), self.channels)
        heads = torch.einsum("btc,tchk->bhk", x, self.ends)
        gram = torch.einsum("bhk,bgk,bh->bg", heads, heads.tanh(), heads.sum(-1))
        return torch.tensordot(gram, heads, ([0], [0]))


class Recurrent(nn.Module):
    """An LSTM whose outputs look at each other: a step of the loop is a call of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.cell = nn.LSTM(6, 8, batch_first=True), nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        found = [x[:, 0]]
        for step in range(1, x.shape[1]):
            query = torch.tanh(found[-1] @ self.cell)
            weights = torch.matmul(x, query.unsqueeze(-1)).softmax(1)
            found.append((x * weights).sum(1) + x[:, step])
        return torch.stack(found, 1)


class Experts(nn.Module):
    """A mixture of experts whose weights are taken by index and multiplied as one batch."""

    def __init__(self, experts: int = 3, width: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 12) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, 12, width) / 12**0.5)

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = self.router(x).softmax(-1).topk(2, -1)
        tokens, which = x.repeat_interleave(2, 0)[:, None], chosen.flatten()
        inner = F.silu(torch.bmm(tokens, self.up[which]))
        found = torch.bmm(inner, self.down[which]).view(len(x), 2, -1)
        every = torch.einsum("td,edf->tef", x, self.up).square().mean()
        return (found * gates[..., None]).sum(1) + every


Case = tuple[Callable[[], nn.Module], dict[str, Callable[[], Tensor]], str | None]
#: what makes a network, what makes its inputs, and the deviation of its norms
NETWORKS: dict[str, Case] = {
    "ViT": (vit, {"x": lambda: torch.randn(3, 1, 8, 8)}, "range"),
    "ViT, unfused": (unfused_vit, {"x": lambda: torch.randn(3, 1, 8, 8)}, "range"),
    "Llama": (llama, {"tokens": lambda: torch.randint(0, 20, (2, 5))}, "range"),
    "Swin's windows": (Window, {"x": lambda: torch.randn(2, 4, 4, 8)}, None),
    "weight-standardised ResNet": (
        StandardizedResNet, {"x": lambda: torch.randn(2, 1, 6, 6)}, "range",
    ),
    "Mixer": (Mixer, {"x": lambda: torch.randn(3, 6, 8)}, "range"),
    "LSTM": (Recurrent, {"x": lambda: torch.randn(3, 4, 6)}, None),
    "experts": (Experts, {"x": lambda: torch.randn(5, 8)}, None),
}  # fmt: skip
