"""Record a finished run: python benchmarks/record_run.py RUN NAME ["what to know about how it was made"].

Everything is read from the run folder that ``cmtvision train`` wrote; nothing is typed in but the remark.
"""

import csv
import json
import sys
from pathlib import Path

import yaml
from record import write_record


def main(run: Path, name: str, remark: str = "") -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    facts = json.loads((run / "run.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    card = json.loads((run / "model.json").read_text())
    with (run / "metrics.csv").open() as file:
        curve = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    kept = ("split", "num_images", "top1_correct", "top5_correct", "top1", "top5", "loss", "per_class", "confusion")
    write_record(
        name,
        f"cmtvision train PHOTOS --recipe {recipe['name']}",
        {
            "remark": remark,
            "architecture": card["architecture"],
            "train_images": facts["num_train"],
            "data_fingerprint": facts["data_fingerprint"],
            "train_seconds": card["provenance"]["train_seconds"],
            "evaluation": {key: evaluation[key] for key in kept},
            "classes": evaluation["classes"],
            "recipe": recipe,
            "curve": curve,
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
