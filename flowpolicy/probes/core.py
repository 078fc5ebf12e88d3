"""Whether what every policy needs can be imported, and torch differentiates forwards."""

import importlib


def main() -> None:
    """Raise whatever goes wrong."""
    import torch

    for name in ("scipy.stats", "hydra", "omegaconf", "safetensors.torch", "tqdm"):
        importlib.import_module(name)
    slope = torch.func.jvp(torch.tanh, (torch.zeros(2),), (torch.ones(2),))[1]
    assert slope.sum() == 2


if __name__ == "__main__":
    main()
