"""What a computer needs to run a policy: how long a prediction takes there, and what works on it."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.deploy.export import write_bundle as write_bundle
    from flowpolicy.deploy.runtime import OnnxPolicy as OnnxPolicy

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "export": ["write_bundle"],
        "runtime": ["OnnxPolicy"],
    },
)
