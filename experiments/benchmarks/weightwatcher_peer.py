"""WeightWatcher on the difference of two safetensors files, for spectrum.py; run by a python that has it.

    python weightwatcher_peer.py NAMES.json START.safetensors FINAL.safetensors

Prints [version, CPU seconds of reading and analysis, largest singular values] as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
import weightwatcher
from safetensors import safe_open
from threadpoolctl import threadpool_limits


def model(path: str, names: list[str]) -> torch.nn.ModuleDict:
    """The named weights as linear layers."""
    layers = {}
    with safe_open(path, "pt") as file:
        for name in names:
            weight = file.get_tensor(name)
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = torch.nn.Parameter(weight)
            layers[name.replace(".", "_")] = layer
    return torch.nn.ModuleDict(layers)


def main(listed: str, *files: str) -> None:
    """Measure, one thread."""
    names = json.loads(Path(listed).read_text())
    torch.set_num_threads(1)
    with threadpool_limits(1):
        started = time.process_time()
        start, final = (model(path, names) for path in files)
        # base_model goes to the constructor: analyze() ignores it without a model of its own.
        details = weightwatcher.WeightWatcher(model=final, base_model=start).analyze()
        seconds = time.process_time() - started
    print(json.dumps([weightwatcher.__version__, seconds, list(details["sv_max"])]))


if __name__ == "__main__":
    main(*sys.argv[1:])
