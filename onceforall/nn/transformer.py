"""The layers of a vision transformer as torch modules; all but the first take tokens [n, tokens, channels]."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
SPREAD = 0.02  # standard deviation of initial weights


class PatchEmbedding(nn.Module):
    """Images [n, in_channels, h, w] to tokens: a convolution `proj`, a class token where wanted, learnt positions."""

    def __init__(
        self, in_channels: int, out_channels: int, patch: int, grid: tuple[int, int], class_token: bool
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + class_token, out_channels))
        self.token = nn.Parameter(torch.zeros(1, 1, out_channels)) if class_token else None

    def initialise(self, generator: torch.Generator) -> None:
        for tensor in (self.positions, self.token):
            if tensor is not None:
                nn.init.normal_(tensor, 0.0, SPREAD, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return x + self.positions


class Attention(nn.Module):
    """Multi-head attention, whose queries, keys and values lie in one tensor [3, heads * head_channels, channels]."""

    def __init__(self, channels: int, heads: int, head_channels: int) -> None:
        super().__init__()
        self.heads, self.head_channels = heads, head_channels
        self.weight = nn.Parameter(torch.empty(3, heads * head_channels, channels))
        self.bias = nn.Parameter(torch.zeros(3, heads * head_channels))
        self.out = nn.Linear(heads * head_channels, channels)
        if not self.weight.is_meta:
            nn.init.trunc_normal_(self.weight, std=SPREAD)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.weight, 0.0, SPREAD, generator=generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        x = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
        q, k, v = x.view(n, tokens, 3, self.heads, self.head_channels).permute(2, 0, 3, 1, 4).unbind()
        x = (q * self.head_channels**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v  # [n, heads, tokens, head_channels]
        result: Tensor = self.out(x.transpose(1, 2).reshape(n, tokens, -1))
        return result


class Encoder(nn.Module):
    """Attention and two linear layers, each with a layer norm before it and a shortcut around it."""

    def __init__(self, channels: int, heads: int, head_channels: int, mlp_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = Attention(channels, heads, head_channels)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        parts = (("expand", nn.Linear(channels, mlp_channels)), ("act", nn.GELU()))
        self.mlp = nn.Sequential(OrderedDict([*parts, ("project", nn.Linear(mlp_channels, channels))]))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class TokenPool(nn.Module):
    """Layer norm, then the class token or the mean of all tokens: [n, tokens, channels] -> [n, channels]."""

    def __init__(self, channels: int, class_token: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x[:, 0] if self.class_token else x.mean(1)
