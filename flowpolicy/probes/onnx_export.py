"""Whether torch writes an ONNX file that onnxruntime runs."""

import logging
import tempfile
import warnings


def main() -> None:
    """Raise whatever goes wrong."""
    import numpy
    import onnxruntime
    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = folder + "/a.onnx"
        program = torch.onnx.export(torch.nn.Linear(2, 1), (torch.ones(1, 2),), dynamo=True, verbose=False)
        assert program is not None
        program.save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        out = session.run(None, {session.get_inputs()[0].name: torch.ones(1, 2).numpy()})
        assert numpy.asarray(out).shape == (1, 1, 1)


if __name__ == "__main__":
    main()
