"""A Chrome trace of everything that was measured, one call each, for chrome://tracing or Perfetto."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class Trace:
    """Calls profiled one by one and written as one file, so that nothing but these calls is in it."""

    def __init__(self, device: str, memory: bool = False) -> None:
        self.memory = memory  # whether what is allocated and given back is in it, too
        self.on_gpu = torch.device(device).type == "cuda"
        self.document: dict[str, Any] = {"traceEvents": []}

    def add(self, name: str, run: Callable[[], object]) -> None:
        """One call of `run`, under `name`; whatever it does once was done before."""
        gpu = [ProfilerActivity.CUDA] if self.on_gpu else []
        with profile(activities=[ProfilerActivity.CPU, *gpu], profile_memory=self.memory) as profiler:
            with record_function(name.replace("×", "x")):  # the profiler writes ASCII
                run()
            if self.on_gpu:
                torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            one = json.loads(file.read_text())
        self.document = {**one, "traceEvents": self.document["traceEvents"] + one["traceEvents"]}

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(self.document))
