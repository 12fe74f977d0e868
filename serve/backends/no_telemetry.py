"""Keeps the runtimes from reporting to their makers; imported before any of them.

ONNX Runtime 1.31 and OpenVINO 2026.4 send usage data by default, and OpenVINO forks a process for it. A service that
handles other people's pictures makes no connection that its owner didn't ask for.
"""

import os
import sys

# ONNX Runtime's own switch; an owner who wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# OpenVINO's switch is a file in the user's home. None makes the import of its telemetry fail, for which it has a stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
