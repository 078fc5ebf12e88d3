#!/usr/bin/env bash
# The installed flowpolicy, first on PATH, on the toy task: from demonstrations to a prediction, half a minute.
# Run in an empty folder by scripts/wheels and scripts/images.
set -euxo pipefail
export OMP_NUM_THREADS=1
python -c "import flowpolicy, sys; sys.exit(not flowpolicy.__file__.startswith(sys.prefix))"
flowpolicy --help >help.txt
flowpolicy doctor
flowpolicy data collect task=toy episodes=6 workers=2 out=data/toy.zarr
flowpolicy train task=toy dataset.path=data/toy.zarr debug=true out=runs/toy
flowpolicy evaluate checkpoint=runs/toy episodes=2
python - <<'PREDICT'
from flowpolicy.checkpoint import load_policy
from flowpolicy.inference.latency import example_observation

policy = load_policy("runs/toy")
print("load_policy and predict:", tuple(policy.predict(example_observation(policy)).shape))
PREDICT
flowpolicy export checkpoint=runs/toy out=runs/bundle episodes=1 repeats=5 warmup=1
