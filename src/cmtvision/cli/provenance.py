"""The origin of a record: command, date, hardware, versions. Read from this machine, never from the network."""

import sys
from typing import Any

_STABLE = ("processor", "instructions", "kernels", "cores", "GPU", "python")


def provenance() -> dict[str, Any]:
    """The command line, the date and what it ran on, for a record that is to be compared with others."""
    import shlex
    from datetime import UTC, datetime
    from importlib import metadata

    import torch

    from cmtvision import __version__
    from cmtvision.cli.machine import describe_machine

    onednn = torch.backends.mkldnn.is_available()
    probe = {
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "mps": torch.backends.mps.is_available(),
        "mkldnn": onednn,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_types": [
            kind for kind in ("bf16", "fp16") if onednn and getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported")()
        ],
    }
    machine = describe_machine(probe)
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "pytorch-lightning")}
    return {
        "command": shlex.join(["cmtvision", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {key: machine[key] for key in _STABLE},
        "threads": torch.get_num_threads(),
        "versions": {"cmtvision": __version__, **versions},
    }
