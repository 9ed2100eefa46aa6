from collections import Counter
from itertools import chain, pairwise

import pytest
from torch.utils.data import DataLoader

from cmtvision.data import EpochSampler, balanced_weights
from cmtvision.errors import CheckpointError, ConfigError


def test_each_epoch_is_another_whole_permutation():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochSampler(50, seed=2)) != first
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


def test_resume_in_the_middle_gives_the_rest_once():
    whole = EpochSampler(20, seed=1)
    whole.set_epoch(3)
    expected = list(whole)
    resumed = EpochSampler(20, seed=1)
    resumed.load_state_dict(whole.state_dict(consumed=8))
    resumed.set_epoch(3)  # what a trainer does at the start of an epoch
    assert resumed.remaining == 12
    assert len(resumed) == 20
    assert list(resumed) == expected[8:]
    assert list(resumed) == expected
    resumed.load_state_dict(whole.state_dict(consumed=8))
    resumed.set_epoch(4)
    assert resumed.remaining == 20


def test_the_state_knows_what_was_handed_out():
    sampler = EpochSampler(20, seed=1)
    iterator = iter(sampler)
    taken = [next(iterator) for _ in range(6)]
    state = sampler.state_dict()
    assert state["offset"] == 6
    other = EpochSampler(20, seed=1)
    other.load_state_dict(state)
    assert taken + list(other) == list(EpochSampler(20, seed=1))


def test_a_finished_epoch_resumes_with_the_next():
    sampler = EpochSampler(4)
    sampler.load_state_dict(sampler.state_dict(consumed=4))
    assert (sampler.epoch, sampler.remaining) == (1, 4)


def test_replicas_share_the_epoch():
    parts = [list(EpochSampler(10, seed=5, rank=rank, num_replicas=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert set().union(*parts) == set(range(10))


def test_in_a_loader():
    loader = DataLoader(list(range(10)), batch_size=4, sampler=EpochSampler(10, seed=2))
    assert len(loader) == 3
    assert sorted(value for batch in loader for value in batch.tolist()) == list(range(10))


def test_another_data_set_or_seed_is_refused():
    state = EpochSampler(10, seed=1).state_dict()
    with pytest.raises(CheckpointError, match="num_samples=10"):
        EpochSampler(11, seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="seed=1"):
        EpochSampler(10, seed=2).load_state_dict(state)
    with pytest.raises(ConfigError):
        EpochSampler(0)


def parts(num_samples, replicas, epoch=0, **options):
    found = []
    for rank in range(replicas):
        sampler = EpochSampler(num_samples, 3, rank=rank, num_replicas=replicas, **options)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(sampler) == len(found[-1])
    return found


@pytest.mark.parametrize("groups", [None, [i // 7 for i in range(50)]])
@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_uneven_gives_each_photo_exactly_once(groups, replicas):
    for epoch in range(3):
        found = parts(50, replicas, epoch, groups=groups, window=2, uneven=True)
        assert sorted(chain(*found)) == list(range(50))
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_more_processes_than_photos_is_one_clear_error_unless_lengths_may_differ():
    with pytest.raises(ConfigError, match="2 photos for 3 processes; start fewer"):
        EpochSampler(2, num_replicas=3)
    assert sorted(map(len, parts(2, 3, uneven=True))) == [0, 1, 1]


def test_an_uneven_epoch_resumes_in_step_though_one_process_is_at_its_end():
    # 10 over 3: lengths 4, 3, 3. After 3 indices each, processes 1 and 2 have none left, but the epoch goes on.
    for rank, left in ((0, 1), (1, 0), (2, 0)):
        sampler = EpochSampler(10, rank=rank, num_replicas=3, uneven=True)
        sampler.load_state_dict(sampler.state_dict(consumed=3))
        assert (sampler.epoch, sampler.remaining, len(list(sampler))) == (0, left, left)
        sampler.load_state_dict(sampler.state_dict(consumed=4))
        assert sampler.epoch == 1


def test_repeated_augmentation_is_deits():
    found = parts(1000, 3, repeats=3)
    assert [len(one) for one in found] == [256 * 3 // 3] * 3  # 1000 // 256 * 256 // 3
    photos = [[index % 1000 for index in one] for one in found]
    # With as many processes as repeats, each process meets the same photos, changed differently.
    assert photos[0] == photos[1] == photos[2]
    assert len(set(photos[0])) == 256
    assert {index // 1000 for index in found[0]} == {0}
    assert {index // 1000 for index in found[2]} == {2}
    alone = parts(1000, 1, repeats=3)[0]
    assert len(alone) == 768
    assert len({index % 1000 for index in alone}) == 256
    assert [index // 1000 for index in alone[:6]] == [0, 1, 2, 0, 1, 2]
    assert len(set(alone)) == len(alone)
    assert [len(one) for one in parts(100, 3, repeats=2)] == [33, 33, 33]  # fewer than 256


def test_balanced_sampling_shows_rare_classes_as_often():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    sampler = EpochSampler(1000, 1, weights=balanced_weights(labels))
    drawn = list(sampler)
    counts = Counter(labels[index % 1000] for index in drawn)
    assert all(280 < counts[label] < 390 for label in range(3))
    # A photo that comes again is another repetition, so it is changed differently.
    assert len(set(drawn)) == 1000
    sampler.set_epoch(1)
    assert list(sampler) != drawn
    assert min(EpochSampler(3, weights=[0, 0, 1]).order(0) % 3) == 2
    for weights in ([1, 1], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1]):
        with pytest.raises(ConfigError, match="expected 3 weights"):
            EpochSampler(3, weights=weights)


def test_shards_are_read_a_window_at_a_time_and_by_one_process_each():
    groups = [i // 10 for i in range(200)]  # 20 shards
    order = list(EpochSampler(200, 5, groups=groups, window=4))
    windows = [{groups[i] for i in order[start : start + 40]} for start in range(0, 200, 40)]
    assert [len(window) for window in windows] == [4] * 5
    assert sorted(order) == list(range(200))
    # Mixed within the window: its shards take turns all the time.
    assert sum(groups[a] != groups[b] for a, b in pairwise(order)) > 100
    assert order != list(EpochSampler(200, 6, groups=groups, window=4))
    readers = Counter(shard for one in parts(200, 4, groups=groups, window=2) for shard in {groups[i] for i in one})
    assert set(readers.values()) == {1}  # 20 shards over 4 processes: none is read twice


@pytest.mark.parametrize(
    "options",
    [
        {"repeats": 3},
        {"weights": [1.0 + i % 3 for i in range(600)]},
        {"groups": [i // 50 for i in range(600)], "window": 3},
        {"groups": [i // 50 for i in range(600)], "uneven": True},
        {"groups": [i // 50 for i in range(600)], "repeats": 2, "weights": [1.0] * 600},
    ],
)
def test_every_order_resumes_anywhere(options):
    for rank in range(2):
        whole = EpochSampler(600, 1, rank=rank, num_replicas=2, **options)
        whole.set_epoch(4)
        expected = list(whole)
        for consumed in (0, 1, 100, len(expected) - 1):
            again = EpochSampler(600, 1, rank=rank, num_replicas=2, **options)
            again.load_state_dict(whole.state_dict(consumed=consumed))
            assert list(again) == expected[consumed:]


def test_another_number_of_processes_is_refused():
    state = EpochSampler(10, num_replicas=2).state_dict()
    with pytest.raises(CheckpointError, match="had 2 processes, this one has 1; start as many as before"):
        EpochSampler(10).load_state_dict(state)
    old = {name: value for name, value in EpochSampler(10).state_dict().items() if name != "num_replicas"}
    EpochSampler(10).load_state_dict(old)


@pytest.mark.parametrize(
    "options",
    [
        {"uneven": True, "repeats": 2},
        {"uneven": True, "weights": [1.0] * 10},
        {"shuffle": False, "groups": [0] * 10},
        {"groups": [0] * 9},
        {"repeats": 0},
        {"window": 0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(options):
    with pytest.raises(ConfigError):
        EpochSampler(10, **options)
