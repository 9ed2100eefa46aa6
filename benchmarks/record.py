"""Records: JSON files under benchmarks/records with what was measured, on what, when, and by which command."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def cmtvision(*arguments: str) -> str:
    """What the cmtvision command of this environment prints."""
    command = [sys.executable, "-m", "cmtvision", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def machine() -> dict[str, Any]:
    """Hardware and versions, as ``cmtvision doctor`` sees them."""
    command = [sys.executable, "-m", "cmtvision", "doctor", "--json"]
    facts = json.loads(subprocess.run(command, check=False, capture_output=True, text=True).stdout)
    stable = ("processor", "instructions", "kernels", "cores", "GPU", "torch build", "python")
    return {
        "hardware": {key: facts["machine"][key] for key in stable},
        "versions": {name: version for name, version in facts["versions"].items() if version},
    }


def write_record(name: str, command: str, content: dict[str, Any]) -> Path:
    """Write benchmarks/records/NAME.json."""
    record = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        **machine(),
        **content,
    }
    path = RECORDS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path
