"""Transformer over observation, time and action tokens together, UCA-Flow's net, and its two usual rivals."""

from typing import Literal, final, get_args

import torch
from torch import Tensor, nn

from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.embedding import TimeEmbedding
from flowpolicy.nets.norm import CompilableLayerNorm

Attention = Literal["joint", "cross", "adaln"]


@final
class JointTransformer(VelocityNet):
    """Pre-norm transformer; the chunk's steps are tokens, and so are parts of the condition and the two flow times.

    The output layer starts at zero. Attention is written out, for torch's fused one has no Jacobian-vector product;
    with some 20 tokens it is no slower. Taps: early, mid, late = the action tokens after the first, the middle and the
    last block, (B, H, dim). Sources: UCA-Flow (arXiv 2608.16153) for the tokens; depth, width and heads are its, GELU
    and pre-norm ours; Peebles & Xie 2023 (adaLN-zero).

    Args:
        action_dim: A, entries of an action.
        horizon: H, steps of a chunk.
        cond_dim: D, length of the condition.
        attention: How action tokens see the rest. "joint": one sequence [observations | t | t - r | actions] in which
            all attend to all, so that the condition's tokens follow the action; "cross": only action tokens are
            updated, and look up the others in each block; "adaln": the others, added up, scale and shift each block
            (DiT). In the paper the last two cost 5 to 17 and 14 to 42 points of success.
        num_obs_tokens: Parts that the condition is cut into; the number of observed steps, where the encoder puts step
            after step (`MultiModalEncoder`, `StateEncoder` with step_by_step). Must divide cond_dim.
        dim: Size.
        depth: As `dim`.
        heads: As `dim`.
        mlp_ratio: As `dim`.
        time_tokens: Tokens for t and for t - r.
        interval_tokens: As `time_tokens`.
        time_dim: Width of their sinusoidal embedding.
        min_time_frequency: See `TimeEmbedding`; UCA-Flow feeds unscaled times: 1e-4 and 1.
        max_time_frequency: As `min_time_frequency`.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        attention: Attention = "joint",
        num_obs_tokens: int = 1,
        dim: int = 384,
        depth: int = 8,
        heads: int = 8,
        mlp_ratio: int = 4,
        time_tokens: int = 1,
        interval_tokens: int = 1,
        time_dim: int = 128,
        min_time_frequency: float = 1.0,
        max_time_frequency: float = 3.0,
    ) -> None:
        super().__init__()
        if attention not in get_args(Attention):
            raise ValueError(f"attention must be one of {', '.join(get_args(Attention))}, got {attention!r}")
        if min(depth, num_obs_tokens, time_tokens, interval_tokens) < 1 or dim % heads:
            raise ValueError(
                "JointTransformer: wanted depth and every number of tokens >= 1 and dim divisible by heads, got "
                f"{depth=}, {num_obs_tokens=}, {time_tokens=}, {interval_tokens=}, {dim=}, {heads=}"
            )
        if cond_dim % num_obs_tokens:
            raise ValueError(
                f"JointTransformer: num_obs_tokens must divide the condition's {cond_dim} entries, got "
                f"{num_obs_tokens}; try num_obs_tokens=1"
            )
        self.shape = (horizon, action_dim)
        self.cond_dim, self.attention, self.num_obs_tokens = cond_dim, attention, num_obs_tokens
        self.embedding = TimeEmbedding(time_dim, min_frequency=min_time_frequency, max_frequency=max_time_frequency)
        self.obs = nn.Linear(cond_dim // num_obs_tokens, dim)
        self.action = nn.Linear(action_dim, dim)
        self.time, self.interval = _time_mlp(time_dim, dim), _time_mlp(time_dim, dim)
        self.obs_position, self.action_position = _position(num_obs_tokens, dim), _position(horizon, dim)
        self.time_position, self.interval_position = _position(time_tokens, dim), _position(interval_tokens, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads, mlp_ratio, attention) for _ in range(depth))
        self.norm = CompilableLayerNorm(dim)
        self.output = nn.Linear(dim, action_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See `VelocityNet`."""
        context = self._context(t, r, cond)  # (B, N, dim)
        tokens = self.action(x_t) + self.action_position  # (B, H, dim)
        first = 0
        if self.attention == "joint":
            first = context.shape[1]
            tokens = torch.cat([context, tokens], dim=1)
        elif self.attention == "adaln":
            context = context.sum(dim=1)  # (B, dim)
        stream = []
        for block in self.blocks:
            tokens = block(tokens, context)
            stream.append(tokens[:, first:])
        features = {"early": stream[0], "second": stream[:2][-1], "mid": stream[len(stream) // 2], "late": stream[-1]}
        return self.output(self.norm(stream[-1])), features

    def _context(self, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        obs = self.obs(cond.unflatten(-1, (self.num_obs_tokens, -1))) + self.obs_position
        time = self.time(self.embedding(t))[:, None] + self.time_position
        interval = self.interval(self.embedding(t - r))[:, None] + self.interval_position
        return torch.cat([obs, time, interval], dim=1)


@final
class _Block(nn.Module):
    """Attention among the tokens, for "cross" another to the context, and an MLP; all residual, norms in front."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, attention: Attention) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = CompilableLayerNorm(dim), CompilableLayerNorm(dim)
        self.attention = _Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        self.cross_norm = CompilableLayerNorm(dim) if attention == "cross" else None
        self.cross = _Attention(dim, heads) if attention == "cross" else None
        self.modulation = nn.Linear(dim, 6 * dim) if attention == "adaln" else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, dim).   context: (B, M, dim), unused by joint blocks; (B, dim) for adaln."""
        if self.modulation is not None:
            parts = self.modulation(nn.functional.silu(context))[:, None].chunk(6, dim=-1)  # (B, 1, dim) each
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
            seen = self.attention_norm(x) * (1.0 + scale) + shift
            x = x + gate * self.attention(seen)
            return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1.0 + mlp_scale) + mlp_shift)
        seen = self.attention_norm(x)
        x = x + self.attention(seen)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


@final
class _Attention(nn.Module):
    """Softmax attention with an output projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.scale = dim, heads, (dim // heads) ** -0.5
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """From x (B, N, dim) to context (B, M, dim), or to x itself.   Returns (B, N, dim)."""
        if context is None:
            query, key, value = self.query_key_value(x).chunk(3, dim=-1)
        else:
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            query = nn.functional.linear(x, weight[: self.dim], bias[: self.dim])
            key, value = nn.functional.linear(context, weight[self.dim :], bias[self.dim :]).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)  # (B, heads, N, M)
        return self.project((weights @ value).transpose(1, 2).flatten(2))


def _time_mlp(time_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(time_dim, dim), nn.SiLU(), nn.Linear(dim, dim))


def _position(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(count, dim, device="cpu", dtype=torch.float32))
