"""FlowPolicy: encoder + head + normalisers + horizons; raw observations in, a chunk of robot actions out."""

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from flowpolicy.actions import ActionRepresentation, Representation
from flowpolicy.ambient import standard_torch, without_autocast
from flowpolicy.embodiment import Embodiment
from flowpolicy.encoders.base import Encoder, module_name
from flowpolicy.flow.sources import Source
from flowpolicy.heads.base import Head
from flowpolicy.inputs import Inputs, is_image
from flowpolicy.nets.base import VelocityNet
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.parts import require_constructors, require_encoder, require_head, require_net
from flowpolicy.samplers.base import Sampler, require_support
from flowpolicy.samplers.choose import as_sampler
from flowpolicy.samplers.jump import JUMP
from flowpolicy.samplers.warm_start import WarmStart
from flowpolicy.seeding import generator_of, normal, seeded_weights
from flowpolicy.spec import PolicySpec
from flowpolicy.types import Batch, LossOutput, Observation


@final
class FlowPolicy(nn.Module):
    """Observations to action chunks.

    Of the `horizon` predicted steps, index 0 is the time of the oldest of the `obs_horizon` observations
    (diffusion_policy's convention); the steps [obs_horizon - 1, obs_horizon - 1 + action_horizon) are executed. Build
    one with `build_policy`, which checks that the slice fits. It draws noise of its own where `predict` is given none,
    from seed 0 on; `reset` starts another seed.

    Args:
        encoder: Observations to the condition.
        head: Velocity and loss over a net.
        representation: Of actions: absolute, relative or delta.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        obs_keys: The observations that it sees, in this order.
        horizon: H, steps of a chunk.
        obs_horizon: To, observations that the policy sees.
        action_horizon: Ta, steps of a chunk that are executed.
        spec: What it was built from, for `save_policy`.

    Attributes:
        chunk_low: (A,), the range of the demonstrated actions as the head sees them (-1 and 1 for minmax): nothing
            beyond it is decoded. `set_chunk_range` sets it, for the head too.
        chunk_high: As `chunk_low`.
        normalized_keys: The observations that have a normaliser: all but the images.
        command_low: (A,), robot units: the embodiment's bounds, and for a command that was the same in every
            demonstrated step that command, which is then returned as it is.
        command_high: As `command_low`.
    """

    action_low: Tensor
    action_high: Tensor
    chunk_low: Tensor
    chunk_high: Tensor
    command_low: Tensor
    command_high: Tensor

    def __init__(
        self,
        *,
        encoder: Encoder,
        head: Head,
        representation: ActionRepresentation,
        embodiment: Embodiment,
        obs_keys: Sequence[str],
        horizon: int,
        obs_horizon: int,
        action_horizon: int,
        spec: PolicySpec,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.head, self.representation, self.embodiment = encoder, head, representation, embodiment
        self.obs_keys = tuple(obs_keys)
        self.horizon, self.obs_horizon, self.action_horizon = horizon, obs_horizon, action_horizon
        self.inputs = Inputs(
            embodiment,
            self.obs_keys,
            obs_horizon=obs_horizon,
            horizon=horizon,
            array=Tensor,
            dtypes={"float32": torch.float32, "uint8": torch.uint8},
        )
        self.normalized_keys = tuple(key for key in self.obs_keys if not is_image(embodiment.obs[key]))
        self.obs_normalizer = nn.ModuleDict(
            {module_name(key): LinearNormalizer.identity(embodiment.obs[key].shape[-1]) for key in self.normalized_keys}
        )
        self.action_normalizer = LinearNormalizer.identity(embodiment.action_dim)
        self.reset(0)
        self.register_buffer("chunk_low", -torch.ones(embodiment.action_dim))
        self.register_buffer("chunk_high", torch.ones(embodiment.action_dim))
        self.register_buffer("command_low", torch.tensor(embodiment.action_low))
        self.register_buffer("command_high", torch.tensor(embodiment.action_high))
        self.register_load_state_dict_post_hook(_tell_head_range)
        self.register_buffer("action_low", torch.tensor(embodiment.action_low), persistent=False)
        self.register_buffer("action_high", torch.tensor(embodiment.action_high), persistent=False)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Training loss of the head on a raw batch (robot units).

        Args:
            batch: Windows, as `SequenceDataset.batch` gives them, on the policy's device.
            generator: Of noise and flow times, on that device too.

        Raises:
            ValueError: For observations, actions or a mask that are not those of the policy.
        """
        self.inputs.check_windows(batch.obs, batch.action, batch.mask)
        cond = self.encode(batch.obs)
        action = self.action_normalizer(self.representation.encode(batch.action, batch.obs))
        return self.head.loss(action, cond, batch.mask, generator)

    def set_chunk_range(self, low: Tensor, high: Tensor) -> None:
        """Set chunk_low and chunk_high, (A,) each, and tell the head.

        Args:
            low: (A,), normalised.
            high: (A,), normalised.
        """
        self.chunk_low, self.chunk_high = low, high
        self.head.set_action_range(low, high)

    def encode(self, obs: Observation) -> Tensor:
        """Raw observations, key -> (B, To, ...), to the condition (B, D). Images reach the encoder as they are.

        Args:
            obs: Key -> (B, To, ...), robot units.
        """
        return self.encoder(
            {
                key: self.obs_normalizer[module_name(key)](obs[key]) if key in self.normalized_keys else obs[key]
                for key in self.obs_keys
            }
        )

    @property
    def device(self) -> torch.device:
        """Where it lies, and where observations go."""
        return self.action_low.device

    @property
    def executed(self) -> slice:
        """The predicted steps that reach the robot."""
        start = self.obs_horizon - 1
        return slice(start, start + self.action_horizon)

    def decode(self, action: Tensor, obs: Observation) -> Tensor:
        """Normalised chunk (B, H, A) to the executed slice in robot units (B, Ta, A), inside the action bounds.

        Args:
            action: (B, H, A), normalised.
            obs: Key -> (B, To, ...), robot units.
        """
        return self._decode_whole(action, obs)[:, self.executed]

    def _decode_whole(self, action: Tensor, obs: Observation) -> Tensor:
        action = self.representation.decode(self.action_normalizer.inverse(action), obs)
        return action.clamp(self.command_low, self.command_high)

    def normalizer(self, key: str) -> LinearNormalizer:
        """The normaliser of one observation. Raises KeyError for an image, which has none.

        Args:
            key: Of the observation.
        """
        module = self.obs_normalizer[module_name(key)]
        assert isinstance(module, LinearNormalizer)
        return module

    @property
    def num_parameters(self) -> int:
        """Of encoder, source and net, which is what `predict` runs; a head's teacher is not counted."""
        parts = (self.encoder, self.head.source, self.head.net)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    @torch.no_grad()
    def predict(
        self,
        obs: Observation,
        *,
        sampler: Sampler | str | None = None,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | Literal["zero"] | None = None,
        start: Tensor | None = None,
        start_time: float = 1.0,
        whole: bool = False,
        finite: Tensor | None = None,
    ) -> Tensor:
        """Action chunk (B, Ta, A) in robot units.

        The starting noise (B, H, A) is `noise`, or drawn from `generator`, by default the policy's own (see `reset`).
        noise="zero" is the way to be deterministic, one action for one observation: the most likely one of a narrow
        distribution, and a wrong one where there are several ways. Torch's global random state, default dtype and
        device, autocast and grad mode play no part.

        Args:
            obs: key -> (B, To, ...) float32 in robot units, images uint8, on the policy's device.
            sampler: How the chunk is drawn, such as `Heun(num_steps=8)` or its name "heun"; None is `Jump`.
            num_steps: K of a named sampler, and of jumps; None is the sampler's own, for jumps 1.
            generator: Of the starting noise, and of the noise that a sampler draws on the way.
            noise: (B, H, A), standard normal; "zero"; None draws it.
            start: Warm start from a whole chunk (B, H, A) in robot units, e.g. `shift_chunk(last_whole_chunk,
                executed)`; the sampler is wrapped in a `WarmStart`, unless it is one.
            start_time: Flow time in (0, 1] of a warm start whose sampler is no `WarmStart`, e.g. 0.85; 1 is a cold one.
            whole: True returns all H steps, which the next warm start needs.
            finite: bool (B,), for a loop that must not raise: told which rows are finite, observation and action; the
                others' actions are NaN. Without it they are a NonFiniteError, which is a ValueError.

        Raises:
            ValueError: For missing keys, wrong shapes or types, and samplers that the head does not support, or not in
                so many steps (`require_support`).
        """
        sampler = as_sampler(sampler, num_steps)
        batch = self.inputs.check(obs)
        if start is None and start_time != 1.0:
            raise ValueError(f"start_time={start_time} needs a start: pass start=(B, H, A) too, or leave it out")
        if start is not None:
            warm = sampler if isinstance(sampler, WarmStart) else WarmStart(sampler=sampler, time=start_time)
            require_support(warm, self.head)
            self.inputs.check_chunk("start", start, batch)
            sampler = warm.begin_at(self.action_normalizer(self.representation.encode(start, obs)))
        if noise is None and generator is None:
            generator = self._own_noise
        require_support(sampler, self.head)
        with without_autocast(self.device):
            chunk = self.sample(self.encode(obs), self._noise(noise, batch, generator), sampler, generator=generator)
            action = self._decode_whole(chunk, obs) if whole else self.decode(chunk, obs)
        self.judge(obs, action, finite)
        return action

    def reset(self, seed: int) -> None:
        """Start the policy's own noise again, as torch.Generator().manual_seed(seed) draws it on every device.

        What `predict` draws from where it is passed neither generator nor noise; 0 in a policy that was just built or
        loaded. Raises ValueError for a negative seed.

        Args:
            seed: 0 or more.
        """
        self._own_noise = generator_of(seed)

    def judge(self, obs: Observation, action: Tensor, finite: Tensor | None = None) -> None:
        """Raise NonFiniteError where raw observations or actions (B, ..., A) are not finite, or tell `finite` (B,).

        Args:
            obs: Key -> (B, To, ...), robot units.
            action: (B, ..., A), robot units.
            finite: (B,) bool, told which rows are finite; None raises.
        """
        self.inputs.judge(obs, action, all_sums(*(obs[key] for key in self.inputs.floats), action), finite)

    def sample(
        self, cond: Tensor, noise: Tensor, sampler: Sampler = JUMP, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Normalised chunk (B, H, A), inside the range of the demonstrated actions.

        Args:
            cond: (B, D), see `encode`.
            noise: (B, H, A).
            sampler: One that the head supports.
            generator: Of noise that it draws on the way.
        """
        return sampler(self.head, noise, cond, generator).clamp(self.chunk_low, self.chunk_high)

    def _noise(self, noise: Tensor | Literal["zero"] | None, batch: int, generator: torch.Generator | None) -> Tensor:
        """What sampling starts from, on the policy's device."""
        device, shape = self.device, (batch, self.horizon, self.embodiment.action_dim)
        if isinstance(noise, str) and noise == "zero":
            return torch.zeros(shape, device=device, dtype=torch.float32)
        if noise is not None:
            self.inputs.check_chunk("noise", noise, batch)
            return noise
        assert generator is not None
        return normal(shape, generator).to(device)


def _tell_head_range(policy: nn.Module, _: object) -> None:
    """After a checkpoint is loaded: the head knows its range from the policy's."""
    assert isinstance(policy, FlowPolicy)
    policy.head.set_action_range(policy.chunk_low, policy.chunk_high)


def all_sums(*values: Tensor) -> list[Tensor]:
    """What `Inputs.judge` takes: a sum per tensor; on another device than the CPU one for all, to wait for it once.

    Args:
        values: Tensors on one device.
    """
    sums = [value.sum() for value in values]
    return sums if values[0].device.type == "cpu" else [torch.stack(sums).sum()]


@standard_torch()
def build_policy(
    *,
    embodiment: Embodiment,
    encoder: Callable[..., Encoder],
    net: Callable[..., VelocityNet],
    head: Callable[..., Head],
    horizon: int = 16,
    obs_horizon: int = 1,
    action_horizon: int = 8,
    action_representation: Representation = "absolute",
    obs_keys: Sequence[str] | None = None,
    seed: int | None = None,
    source: Callable[..., Source] | None = None,
) -> FlowPolicy:
    """Wire the parts: shapes flow from the embodiment and the horizons into encoder, net and head.

    Args:
        embodiment: The robot's contract, which names the observations and their shapes.
        encoder: A class, or a `functools.partial` of one with everything but the shapes filled in. It is called with
            obs_shapes (key -> shape of one step) and obs_horizon.
        net: The same; called with action_dim, horizon and cond_dim, the encoder's feature_dim.
        head: The same; called with the net.
        horizon: H, action steps that are predicted.
        obs_horizon: To, observations that are seen.
        action_horizon: Ta, action steps that are executed.
        action_representation: "absolute", "relative" (to the newest observed state) or "delta" (to the step before).
        obs_keys: Which of the embodiment's observations to use, in this order; None is all of them.
        seed: Of the run, which fixes the first weights; None draws them from torch's global generator.
        source: The same, of what the head's flows start from; called with action_dim, horizon and cond_dim. None is
            Gaussian noise.

    Raises:
        ValueError: When the executed slice does not fit into the horizon, a key is unknown, an image not uint8, actions
            are relative to a state that the policy does not see, or the head starts from no noise and has a source.
    """
    if min(horizon, obs_horizon, action_horizon) < 1:
        raise ValueError(f"horizons must be positive, got {horizon=}, {obs_horizon=}, {action_horizon=}")
    if obs_horizon - 1 + action_horizon > horizon:
        raise ValueError(
            f"obs_horizon - 1 + action_horizon must be at most horizon, got {obs_horizon} - 1 + {action_horizon} > "
            f"{horizon}; the executed slice would run past the predicted chunk"
        )
    representation = ActionRepresentation(action_representation, embodiment)
    keys = _seen_keys(obs_keys, embodiment, representation)
    require_constructors(encoder=encoder, net=net, head=head)
    with seeded_weights(seed):
        built_encoder = encoder(obs_shapes={key: embodiment.obs[key].shape for key in keys}, obs_horizon=obs_horizon)
        require_encoder(built_encoder, {key: embodiment.obs[key] for key in keys}, obs_horizon=obs_horizon)
        shapes = {"action_dim": embodiment.action_dim, "horizon": horizon, "cond_dim": built_encoder.feature_dim}
        built_net = net(**shapes)
        require_net(built_net, cond_dim=built_encoder.feature_dim, shape=(horizon, embodiment.action_dim))
        built_head = head(built_net)
        require_head(built_head)
        if source is not None:
            built_head.set_source(source(**shapes))
    numbers = {
        "horizon": horizon,
        "obs_horizon": obs_horizon,
        "action_horizon": action_horizon,
        "action_representation": action_representation,
        "obs_keys": obs_keys,
        **({} if source is None else {"source": source}),
    }
    return FlowPolicy(
        encoder=built_encoder,
        head=built_head,
        representation=representation,
        embodiment=embodiment,
        obs_keys=keys,
        horizon=horizon,
        obs_horizon=obs_horizon,
        action_horizon=action_horizon,
        spec=PolicySpec(encoder, net, head, numbers),
    )


def _seen_keys(
    obs_keys: Sequence[str] | None, embodiment: Embodiment, representation: ActionRepresentation
) -> list[str]:
    """`obs_keys`, or all. Raises ValueError for keys that `build_policy` refuses."""
    keys = list(embodiment.obs) if obs_keys is None else list(obs_keys)
    if unknown := [key for key in keys if key not in embodiment.obs]:
        raise ValueError(f"obs_keys: unknown {unknown}; the embodiment has {list(embodiment.obs)}")
    if bad := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"obs_keys: {bad} are there twice; leave one of them out")
    if representation.kind != "absolute" and representation.key not in keys:
        raise ValueError(
            f"obs_keys: action_representation={representation.kind} subtracts '{representation.key}', which is not "
            f"among {keys}; add it to `obs_keys` or use absolute"
        )
    if floats := [key for key in keys if len(embodiment.obs[key].shape) == 3 and not is_image(embodiment.obs[key])]:
        raise ValueError(f"obs_keys: the images {floats} must be uint8 (0 to 255) in data and embodiment")
    return keys
