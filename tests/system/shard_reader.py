"""One of several processes that read an epoch: python shard_reader.py DATA RANK PROCESSES WORKERS LOG STATE [STOP].

For each photo of a batch a line goes to LOG (index, shard, name, sum of pixels), then the state is saved. After STOP
batches the process kills itself as ``kill -9`` would. Where STATE is there already, it goes on from it.
"""

import json
import os
import signal
import sys
from pathlib import Path

from torch.utils.data import DataLoader

from cmtvision.data import EpochSampler, Preprocess, group_numbers, read_dataset
from cmtvision.data.training.dataset import ImageDataset

EPOCH = 2
BATCH = 4
PREPROCESS = Preprocess((8, 8), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)


def main(data, rank, processes, workers, log, state, stop=None):
    samples = read_dataset(data, val_fraction=0).train
    sampler = EpochSampler(
        len(samples),
        seed=1,
        rank=int(rank),
        num_replicas=int(processes),
        groups=group_numbers(samples),
        window=2,
        uneven=True,
    )
    sampler.set_epoch(EPOCH)
    if Path(state).exists():
        sampler.load_state_dict(json.loads(Path(state).read_text()))
    assert sampler.epoch == EPOCH
    consumed = len(sampler) - sampler.remaining
    loader = DataLoader(ImageDataset(samples, PREPROCESS), batch_size=BATCH, sampler=sampler, num_workers=int(workers))
    for batch, (images, _, indices) in enumerate(loader, start=1):
        with Path(log).open("a") as out:
            for image, index in zip(images, indices.tolist(), strict=True):
                where = samples[index].path
                out.write(json.dumps([index, where.store.location, where.name, float(image.double().sum())]) + "\n")
        consumed += len(indices)
        Path(state).write_text(json.dumps(sampler.state_dict(consumed)))
        if batch == int(stop or 0):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
