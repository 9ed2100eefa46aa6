import logging
import pickle

import numpy as np
import pytest
import torch
from data_files import folder_dataset
from PIL import Image
from torch.utils.data import DataLoader

from cmtvision.data import EpochSampler, Preprocess, Sample, read_dataset
from cmtvision.data.training.augment import train_transform
from cmtvision.data.training.dataset import ImageDataset
from cmtvision.errors import DataError
from cmtvision.recipe import AugmentSection

PREPROCESS = Preprocess((16, 16), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
FIXED = AugmentSection(random_resized_crop=False, crop_padding=2, auto_augment=None, random_erasing=0.0)


@pytest.fixture
def samples(tmp_path):
    return read_dataset(folder_dataset(tmp_path, {"cat": 6, "dog": 6}), val_fraction=0).train


def epoch_of(dataset, epoch, workers, loader=None):
    loader = loader or DataLoader(dataset, batch_size=4, num_workers=workers)
    dataset.set_epoch(epoch)
    return torch.cat([images for images, _, _ in loader])


@pytest.mark.parametrize("augment", [FIXED, AugmentSection()])
@pytest.mark.parametrize("cache", [False, True])
def test_workers_cache_and_restarts_change_nothing(samples, augment, cache):
    transform = train_transform(PREPROCESS, augment)
    alone = ImageDataset(samples, transform, seed=5)
    expected = [epoch_of(alone, epoch, 0) for epoch in (0, 1)]
    assert not torch.equal(*expected)
    dataset = ImageDataset(samples, transform, seed=5, cache=cache)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 0):  # the workers live on and must hear of the new epoch
        assert torch.equal(epoch_of(dataset, epoch, 2, loader), expected[epoch])
    assert not torch.equal(epoch_of(ImageDataset(samples, transform, seed=6), 0, 0), expected[0])


def test_forked_workers_fill_one_cache(samples):
    dataset = ImageDataset(samples, PREPROCESS, cache=True)
    first = epoch_of(dataset, 0, 2)
    for sample in samples:
        sample.path.unlink()
    assert torch.equal(epoch_of(dataset, 0, 0), first)
    with pytest.raises(DataError, match="no such file"):
        pickle.loads(pickle.dumps(dataset))[0]


def test_evaluation_gives_the_preprocess_contract_label_and_index(samples):
    tensor, label, index = ImageDataset(samples, PREPROCESS)[7]
    assert np.array_equal(tensor.numpy(), PREPROCESS(samples[7].path))
    assert (label, index) == (1, 7)


def test_a_photo_lost_in_training_is_replaced_by_its_class_and_named(samples, caplog):
    dataset = ImageDataset(samples, train_transform(PREPROCESS, FIXED))
    samples[5].path.write_bytes(b"gone")
    loader = DataLoader(dataset, batch_size=4, num_workers=2)
    batches = {
        int(index): int(label) for _, labels, indices in loader for label, index in zip(labels, indices, strict=True)
    }
    assert batches == {index: index // 6 for index in range(12)}
    assert dataset.failures == [samples[5].path]  # seen by the main process, though a worker met it
    samples[6].path.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            dataset[6]
    assert len(caplog.records) == 1
    assert dataset[6][1] == 1
    assert dataset.failures == [samples[5].path, samples[6].path]


def test_a_photo_lost_in_evaluation_is_an_error_with_its_name(samples):
    samples[5].path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"cat/005\.png"):
        ImageDataset(samples, PREPROCESS)[5]


def test_a_class_that_vanished_is_an_error(samples):
    for sample in samples[6:]:
        sample.path.unlink()
    dataset = ImageDataset(samples, train_transform(PREPROCESS, FIXED))
    with pytest.raises(DataError, match="no photo of its class can be read any more"):
        dataset[8]
    dataset[0]


def test_no_samples_is_an_error():
    with pytest.raises(DataError, match="without a single photo"):
        ImageDataset([], PREPROCESS)


def test_a_resumed_epoch_sees_the_same_pixels(samples):
    transform = train_transform(PREPROCESS, FIXED)
    dataset, sampler = ImageDataset(samples, transform, seed=1), EpochSampler(12, seed=1)
    dataset.set_epoch(2)
    sampler.set_epoch(2)
    whole = torch.cat([batch[0] for batch in DataLoader(dataset, batch_size=4, sampler=sampler)])
    again = EpochSampler(12, seed=1)
    again.load_state_dict(sampler.state_dict(consumed=8))
    fresh = ImageDataset(samples, transform, seed=1)
    fresh.set_epoch(again.epoch)
    rest = torch.cat([batch[0] for batch in DataLoader(fresh, batch_size=4, sampler=again)])
    assert torch.equal(rest, whole[8:])


def test_a_repetition_is_the_same_photo_changed_differently(samples):
    dataset = ImageDataset(samples, train_transform(PREPROCESS, FIXED), seed=1)
    first, again = dataset[3], dataset[3 + len(samples)]
    assert (first[1:], again[1:]) == ((0, 3), (0, 3))
    assert not torch.equal(first[0], again[0])
    assert torch.equal(dataset[3 + len(samples)][0], again[0])


def test_several_labels_become_a_row_of_zeros_and_ones_and_stand_ins_have_the_same(samples):
    labels = [(0,), (0, 2), (), (1, 2), (0, 2)]
    several = [Sample(sample.path, min(row, default=-1), row) for sample, row in zip(samples, labels, strict=False)]
    dataset = ImageDataset(several, train_transform(PREPROCESS, FIXED), num_classes=3)
    assert [dataset[i][1].tolist() for i in range(4)] == [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]]
    assert dataset[0][1].dtype == torch.float32
    _, targets, _ = next(iter(DataLoader(dataset, batch_size=5)))
    assert targets.shape == (5, 3)
    several[1].path.unlink()
    assert torch.equal(dataset[1][1], torch.tensor([1.0, 0.0, 1.0]))
    several[2].path.unlink()
    with pytest.raises(DataError, match="no photo of its class"):
        dataset[2]


@pytest.mark.parametrize("cache", [False, True])
def test_photos_are_shrunk_as_they_are_read_and_kept_for_all_workers(tmp_path, cache):
    root = folder_dataset(tmp_path, {"cat": 4, "dog": 4}, size=60)
    samples = read_dataset(root, val_fraction=0).train
    long = tmp_path / "cat" / "long.png"
    Image.new("RGB", (400, 40), (9, 90, 200)).save(long)
    gray = tmp_path / "cat" / "gray.png"
    Image.new("L", (70, 50), 77).save(gray)
    samples = [*samples, Sample(long, 0), Sample(gray, 0)]
    transform = train_transform(PREPROCESS, AugmentSection(auto_augment=None))
    dataset = ImageDataset(samples, transform, seed=3, cache=cache, short_side=30)
    assert min(dataset._read(0).size) == 30
    assert dataset._read(8).size == (300, 30)
    assert dataset._read(9).mode == "L"
    expected = epoch_of(dataset, 1, 0)
    again = ImageDataset(samples, transform, seed=3, cache=cache, short_side=30)
    loader = DataLoader(again, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        seen = epoch_of(again, epoch, 2, loader)
    assert torch.equal(seen, expected)
    if cache:
        for sample in samples[:8]:
            sample.path.unlink()
        assert torch.equal(epoch_of(again, 1, 0), expected)  # what workers have read, this process has too
        assert again._cache.get(8) is None  # over twice as long as wide: read anew each time
    whole = ImageDataset(samples[8:], transform, seed=3)
    assert whole._read(0).size == (400, 40)
