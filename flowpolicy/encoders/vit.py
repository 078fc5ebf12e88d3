"""Light vision transformer with a spatial embedding: DM1's and DPPO's image encoder, small enough for a CPU."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.encoders.base import KeyEncoder

_SMALLEST = 8 + 4 * 2  # pixels: three steps of the first convolution feed one of the second


@final
class LightViT(KeyEncoder):
    """Image (M, H, W, 3) uint8 -> (M, feature_dim).

    Two convolutions (8x8 stride 4, 3x3 stride 2) make one token per 8 x 8 pixels, 121 at 96 x 96; learned positions,
    `depth` pre-norm transformer layers, LayerNorm, then a `SpatialEmbedding` that also sees the state. Sizes at the
    defaults, 96 x 96 and 9 state entries: 386,304 parameters and 33,408 for the embedding. Left out: the source's
    dropout of 0.1 behind the embedding, whose masks a resumed run could not repeat.

    Args:
        shape: (H, W, 3).
        state_dim: Length of the state vector beside.
        width: Of the tokens.
        depth: Transformer layers.
        num_heads: Of attention.
        feature_dim: Length of what comes out.

    Source: Ren et al. 2024 (DPPO), which DM1 takes over.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        state_dim: int,
        width: int = 128,
        depth: int = 1,
        num_heads: int = 4,
        feature_dim: int = 128,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < _SMALLEST:
            raise ValueError(f"LightViT: an image must be (H, W, 3) and at least {_SMALLEST} wide, got {tuple(shape)}")
        if width % num_heads:
            raise ValueError(f"LightViT: width must be divisible by num_heads, got {width} and {num_heads}")
        self.feature_dim = feature_dim
        rows, columns = (((size - 8) // 4 + 1 - 3) // 2 + 1 for size in shape[:2])
        self.patches = nn.Sequential(nn.Conv2d(3, width, 8, stride=4), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2))
        self.position = nn.Parameter(torch.empty(rows * columns, width))
        self.layers = nn.Sequential(*[_Layer(width, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.embedding = SpatialEmbedding(
            tokens=rows * columns, width=width, state_dim=state_dim, feature_dim=feature_dim
        )

    def forward(self, value: Tensor, state: Tensor) -> Tensor:
        """See `KeyEncoder`."""
        image = value.permute(0, 3, 1, 2).float() / 255 - 0.5  # (M, 3, H, W)
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position  # (M, L, width)
        return self.embedding(self.norm(self.layers(tokens)), state)


@final
class SpatialEmbedding(nn.Module):
    """Tokens (M, L, width) and state (M, state_dim) -> (M, feature_dim).

    Each channel's L values and the state give, through Linear - LayerNorm - ReLU, a row of `feature_dim`; the rows are
    weighted entry by entry and summed over the channels: unlike an average, this keeps where things are.

    Args:
        tokens: L, how many there are.
        width: Of a token.
        state_dim: Length of the state vector beside.
        feature_dim: Length of what comes out.
    """

    def __init__(self, *, tokens: int, width: int, state_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(tokens + state_dim, feature_dim), nn.LayerNorm(feature_dim), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(width, feature_dim))

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        """See the class.

        Args:
            tokens: (M, L, width).
            state: (M, state_dim).
        """
        channels = tokens.transpose(1, 2)  # (M, width, L)
        state = state[:, None].expand(-1, channels.shape[1], -1).to(channels.dtype)
        return (self.rows(torch.cat([channels, state], dim=-1)) * self.weight).sum(dim=1)


@final
class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (M, heads, L, width / heads) each
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)
