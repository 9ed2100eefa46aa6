import pytest
from torch.utils.data import DataLoader

from cmtvision.data import EpochSampler
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
