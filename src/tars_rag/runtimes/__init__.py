"""Arrays in, arrays out: run one graph on one device."""

import os

# ONNX Runtime 1.32 reports its use over the network, and keeps an id for it, unless this is set
# before it is imported. The user's own word counts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
