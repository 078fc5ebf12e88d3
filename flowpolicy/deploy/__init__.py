"""What a computer needs to run a policy without the training side: bundles, their runtime, and a check of both."""

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
