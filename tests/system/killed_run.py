"""Runs the command and kills its own process, as ``kill -9`` would, at a chosen place.

    python killed_run.py KIND NUMBER WORDS...

KIND and NUMBER: 'step' N (inside the N-th training step), 'validation' N (at the N-th look at the held-out photos),
'writing' N (half of the N-th checkpoint is on the disk), 'written' N (whole, not yet renamed), 'between' N (the last
one has been renamed to previous, the new one not yet to last).
"""

import os
import signal
import sys
from pathlib import Path


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_the(number, place, name, before=None):
    """Die in the number-th call of place.name; ``before`` is called with its result first."""
    original, seen = getattr(place, name), 0

    def counted(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == number:
            if before is not None:
                before(original(*args, **kwargs), *args)
            die()
        return original(*args, **kwargs)

    setattr(place, name, counted)


def tear(_, path, *__):
    file = Path(path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def task_of(words):
    from cmtvision.detection.task import DetectionTask
    from cmtvision.engine.classification import Classification
    from cmtvision.segmentation.task import SegmentationTask

    return {"detect": DetectionTask, "segment": SegmentationTask}.get(words[0], Classification)


def main(kind, number, words):
    import pytorch_lightning as pl

    from cmtvision.engine import checkpoints
    from cmtvision.engine.callbacks import checkpoint
    from cmtvision.engine.module import TrainingModule

    if kind == "step":
        at_the(number, TrainingModule, "training_step")
    elif kind == "validation":
        at_the(number, task_of(words), "judge", before=lambda *_: None)  # looked at, and not yet written down
    elif kind in ("writing", "written"):
        original_save = pl.Trainer.save_checkpoint
        count = 0

        def save(self, path, *args, **kwargs):
            nonlocal count
            count += 1
            original_save(self, path, *args, **kwargs)
            if count == number:
                if kind == "writing":
                    tear(None, path)
                die()

        pl.Trainer.save_checkpoint = save
    elif kind == "between":

        class DyingPath(type(Path())):
            renamed = 0

            def replace(self, target):
                if self.name == ".writing.ckpt":
                    DyingPath.renamed += 1
                    if DyingPath.renamed == number:
                        die()
                return super().replace(target)

        wanted = checkpoints.save_checkpoint
        checkpoint.save_checkpoint = lambda out, save, processes: wanted(DyingPath(out), save, processes)
    from cmtvision.cli import main as command

    return command(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
