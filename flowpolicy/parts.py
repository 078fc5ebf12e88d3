"""Whether parts fit together, asked when a policy is built: those of somebody else's package are tried once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowpolicy.embodiment import KeySpec
from flowpolicy.encoders.base import Encoder
from flowpolicy.heads.base import Head
from flowpolicy.nets.base import VelocityNet


def require_constructors(
    *, encoder: Callable[..., Encoder], net: Callable[..., VelocityNet], head: Callable[..., Head]
) -> None:
    """Raise ValueError for a part that was made already: its shapes come from the embodiment and the horizons.

    Args:
        encoder: As for `build_policy`.
        net: The same.
        head: The same.
    """
    for name, part in (("encoder", encoder), ("net", net), ("head", head)):
        if isinstance(part, nn.Module) or not callable(part):
            cls = type(part).__name__
            raise ValueError(
                f"build_policy: {name} must be a class, or functools.partial of one, which is called with the shapes; "
                f"got an object of {cls}; pass {name}=functools.partial({cls}, ...)"
            )


def require_encoder(encoder: Encoder, specs: Mapping[str, KeySpec], *, obs_horizon: int) -> None:
    """Raise ValueError unless this is an encoder; one of another package has to give what it says for zeros.

    Args:
        encoder: The encoder.
        specs: The observations that it is to read.
        obs_horizon: To.
    """
    name = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise ValueError(f"build_policy: encoder {name} must derive from flowpolicy.encoders.Encoder")
    if not hasattr(encoder, "feature_dim"):
        raise ValueError(f"build_policy: encoder {name} must set self.feature_dim, entries of what it gives per row")
    if _is_ours(encoder):
        return
    obs = {
        key: torch.zeros(1, obs_horizon, *spec.shape, dtype=torch.uint8 if spec.dtype == "uint8" else torch.float32)
        for key, spec in specs.items()
    }
    shapes = {key: tuple(value.shape) for key, value in obs.items()}
    _require_shape(encoder, (obs,), (1, encoder.feature_dim), f"(B, feature_dim) of observations {shapes}")


def require_net(net: VelocityNet, *, cond_dim: int, shape: tuple[int, int]) -> None:
    """Raise ValueError unless this is a net for the policy; one of another package has to give its shape for zeros.

    Args:
        net: The net.
        cond_dim: D, entries of the condition.
        shape: (H, A) of a chunk.
    """
    name = type(net).__name__
    if not isinstance(net, VelocityNet):
        raise ValueError(
            f"build_policy: net {name} must derive from flowpolicy.nets.VelocityNet and define forward_with_features"
        )
    if not hasattr(net, "cond_dim") or net.cond_dim != cond_dim:
        raise ValueError(f"build_policy: net {name} must set self.cond_dim = cond_dim, the encoder's {cond_dim}")
    if net.shape not in (None, shape):
        raise ValueError(
            f"build_policy: net {name} must set self.shape = (horizon, action_dim) = {shape}, or not at all"
        )
    if not _is_ours(net):
        given = torch.zeros(1, *shape), torch.ones(1), torch.zeros(1), torch.zeros(1, cond_dim)
        _require_shape(net, given, (1, *shape), "(B, horizon, action_dim)")


def require_head(head: Head) -> None:
    """Raise ValueError unless this is a head.

    Args:
        head: The head.
    """
    if not isinstance(head, Head) or not hasattr(head, "net"):
        raise ValueError(
            f"build_policy: head {type(head).__name__} must derive from flowpolicy.heads.Head and set self.net = net"
        )


def _is_ours(part: nn.Module) -> bool:
    return type(part).__module__.startswith("flowpolicy.")


def _require_shape(part: nn.Module, given: tuple[object, ...], wanted: tuple[int, ...], meaning: str) -> None:
    """One call on zeros, which leaves modes and random numbers as they were."""
    name = f"build_policy: {type(part).__name__}"
    with _at_rest(part):
        try:
            output = part(*given)
        except (RuntimeError, TypeError, KeyError, IndexError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{name} failed where it should give {wanted} = {meaning}: {text}") from error
    if not isinstance(output, Tensor) or output.shape != wanted or output.dtype != torch.float32:
        got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{name} must give float32 {wanted} = {meaning}, got {got.removeprefix('torch.')}")


@contextmanager
def _at_rest(part: nn.Module) -> Iterator[None]:
    """Without gradients, in evaluation mode and on random numbers of its own."""
    modes = {module: module.training for module in part.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        part.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
