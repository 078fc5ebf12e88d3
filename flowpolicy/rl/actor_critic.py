"""Actor and critic: a policy whose chunks are sampled with a known density, and a value for what it sees."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from flowpolicy.exploration.base import (
    Chain,
    Exploration,
    chain_log_prob,
    require_choice,
    require_support,
    sample_chain,
)
from flowpolicy.heads.base import Head
from flowpolicy.nets.value import ValueMLP
from flowpolicy.policy import FlowPolicy
from flowpolicy.rl.rounding import masked_sum
from flowpolicy.samplers.base import Need, Sampler, State
from flowpolicy.types import Observation

Rows = Literal["auto", "executed", "all"]
Reduction = Literal["sum", "mean"]
_FEATURES = "features"


class Decision(NamedTuple):
    """What N environments are told, and what is stored of it.

    Args:
        chunk: (N, Ta, A), robot units.
        stored: What `features` takes back.
        chain: Stochastic transitions, see `Chain`.
        log_prob: (N,).
        value: As `log_prob`.
        saturated: Share of executed entries beyond the demonstrated range.
    """

    chunk: Tensor
    stored: Observation
    chain: Chain
    log_prob: Tensor
    value: Tensor
    saturated: Tensor


class Score(NamedTuple):
    """Of stored decisions under the present weights. log_prob: (B,).

    Args:
        log_prob: (B,).
        entries: (B,), what log_prob times gives the logarithm of the density: 1, or their number where log_prob is a
            mean.
        entropy: Scalars, means over the entries that count; the std is detached.
        std: As `entropy`.
    """

    log_prob: Tensor
    entries: Tensor
    entropy: Tensor
    std: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class _Explored(Sampler):
    """The chain of an exploration as a sampler, so that it goes the policy's own way; it keeps chain and condition."""

    exploration: Exploration
    drawn: list[tuple[Chain, Tensor]] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        return self.num_steps

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()  # `exploration.base.require_support` has looked

    @property
    def draws(self) -> bool:
        return True

    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        assert generator is not None
        chain = sample_chain(self.exploration, head.velocity, state.x, cond, generator)
        self.drawn.append((chain, cond))
        return chain.action


@final
class ActorCritic(nn.Module):
    """The policy, the exploration around it, the critic, and a frozen copy of the policy as it came.

    The whole stays in evaluation mode: dropout or batch statistics would make every ratio noise.

    Args:
        policy: To fine-tune.
        exploration: How the policy draws actions to learn from, and their densities.
        critic_width: Of the critic's hidden layers.
        critic_depth: Hidden layers of the critic.
        rows: Which rows of a chunk count in a density. "executed": those that run; exact for the last flow step, where
            rows are independent. "all": every one; earlier steps' rows reach the executed ones through the net. "auto":
            each where it is right.
        log_prob_reduction: "sum" is the density. "mean" divides its logarithm by the number N of entries, so that a
            clip at e acts like one at e N on the true ratio (DBPO, ReinFlow).
        freeze_encoder: Train the head alone; the rollout then stores features, not observations.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        exploration: Exploration | Callable[..., Exploration],
        *,
        critic_width: int = 256,
        critic_depth: int = 3,
        rows: Rows = "auto",
        log_prob_reduction: Reduction = "sum",
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        require_choice("rows", rows, Rows)
        require_choice("log_prob_reduction", log_prob_reduction, Reduction)
        shape = {"action_dim": policy.embodiment.action_dim, "horizon": policy.horizon}
        cond_dim = policy.encoder.feature_dim
        self.policy = policy.requires_grad_(True)
        if not isinstance(exploration, Exploration):
            exploration = exploration(**shape, cond_dim=cond_dim)
        require_support(exploration, policy.head)
        self.exploration = exploration
        self.critic = ValueMLP(cond_dim, width=critic_width, depth=critic_depth)
        self.reference = copy.deepcopy(policy).requires_grad_(False)
        self.rows, self.log_prob_reduction = rows, log_prob_reduction
        self.frozen = freeze_encoder or not any(True for _ in policy.encoder.parameters())
        if self.frozen:
            policy.encoder.requires_grad_(False)
        for normalizer in (policy.obs_normalizer, policy.action_normalizer):
            normalizer.requires_grad_(False)
        self.to(policy.device).eval()

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What the actor's optimiser moves: the policy's trainable parts and the exploration's."""
        for module in (self.policy, self.exploration):
            yield from (parameter for parameter in module.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def act(self, obs: Observation, generator: torch.Generator) -> Decision:
        """Sample a chunk for each of N observations, key -> (N, To, ...).

        Args:
            obs: Key -> (B, To, ...), robot units.
            generator: Of the noise.

        Raises:
            ValueError: For observations that `FlowPolicy.predict` would refuse, and where one, or the chunk, is not
                finite, naming the environment's row.
        """
        obs = {key: obs[key].to(self.policy.device) for key in self.policy.obs_keys if key in obs}
        explored = _Explored(exploration=self.exploration, num_steps=self.exploration.num_steps)
        chunk = self.policy.predict(obs, sampler=explored, generator=generator)
        chain, cond = explored.drawn[0]
        low, high = self.policy.chunk_low, self.policy.chunk_high
        action = chain.action.clamp(low, high)  # part of the environment: the density is of the unclamped chunk
        choice = low < high  # where only one command is possible, being beyond it says nothing
        beyond = ((chain.action != action) & choice)[:, self._executed()]
        stored = {_FEATURES: cond} if self.frozen else obs
        log_prob = self._reduce(chain.log_prob, chain.step)
        return Decision(chunk, stored, chain, log_prob, self.critic(cond), beyond.float().mean())

    @torch.no_grad()
    def value(self, obs: Observation) -> Tensor:
        """Value of raw observations, (N,).

        Args:
            obs: Key -> (B, To, ...), robot units.
        """
        obs = {key: obs[key].to(self.policy.device) for key in self.policy.obs_keys}
        return self.critic(self.policy.encode(obs))

    def features(self, stored: Observation) -> Tensor:
        """Condition (B, D) of stored decisions, with the encoder's gradients where it is trained.

        Args:
            stored: Observations, or condition features where the encoder is frozen.
        """
        return stored[_FEATURES] if self.frozen else self.policy.encode(stored)

    def reference_features(self, stored: Observation) -> Tensor:
        """The same as the reference sees it.

        Args:
            stored: As for `features`.
        """
        return stored[_FEATURES] if self.frozen else self.reference.encode(stored)

    def score(self, cond: Tensor, chain: Chain) -> Score:
        """Score stored transitions, with gradients.

        Args:
            cond: (B, D), the condition.
            chain: Stochastic transitions.
        """
        scored = chain_log_prob(self.exploration, self.policy.head.velocity, chain, cond)
        counted = self._counted(chain.step).expand(scored.log_prob.shape)
        log_prob = self._reduce(scored.log_prob, chain.step)
        entries = torch.ones_like(log_prob) if self.log_prob_reduction == "sum" else counted.sum((1, 2, 3))
        return Score(log_prob, entries, scored.entropy[counted].mean(), scored.std[counted].mean().detach())

    def _reduce(self, log_prob: Tensor, step: Tensor) -> Tensor:
        """(B, S, H, A) -> (B,)."""
        counted = self._counted(step)
        total = masked_sum(log_prob, counted, (1, 2, 3))
        if self.log_prob_reduction == "sum":
            return total
        return total / (counted.sum((1, 2, 3)) * log_prob.shape[-1])

    def _counted(self, step: Tensor) -> Tensor:
        """(B, S, H, 1) bool, which entries of the transitions `step` (B, S) count in the density."""
        executed = torch.zeros(self.policy.horizon, dtype=torch.bool, device=step.device)
        executed[self._executed()] = True
        if self.rows == "auto":
            interior = (step < self.exploration.num_steps - 1)[:, :, None]
            return (interior | executed)[..., None]
        return (executed if self.rows == "executed" else executed | True).expand(*step.shape, -1)[..., None]

    def _executed(self) -> slice:
        """Rows that reach the robot; with step-wise differences also those that they are summed from."""
        executed = self.policy.executed
        return slice(0, executed.stop) if self.policy.representation.kind == "delta" else executed
