"""What each of several processes takes of a batch, and what they send."""

import math
from unittest import mock

import pytest
import torch
from conftest import changed
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import processes, torchrun
from relora_lab import state as states
from relora_lab.data import open_corpus
from relora_lab.errors import BadInput
from relora_lab.objective import LanguageModelling
from relora_lab.update import update


def as_process(rank, count):
    """Be one of several processes."""
    return mock.patch.multiple(processes, rank=lambda: rank, count=lambda: count)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_the_parts_of_all_processes_are_the_batch_and_none_is_larger_than_alone(count, micro_batches, times):
    batch = torch.arange(times * math.lcm(count, micro_batches))
    found = []
    for rank in range(count):
        with as_process(rank, count):
            processes.check_batch(len(batch))
            found.append(processes.parts(batch, micro_batches))
            assert max(map(len, found[-1])) == processes.most_rows(len(batch), micro_batches)
    assert torch.equal(torch.cat([part for parts in found for part in parts]), batch)
    assert {sum(map(len, parts)) for parts in found} == {len(batch) // count}
    assert max(len(part) for parts in found for part in parts) <= max(map(len, batch.chunk(micro_batches)))


@pytest.fixture
def sent(monkeypatch):
    """What a process sends to one that has the same: what comes back is twice that."""
    tensors = []

    def all_reduce(tensor, _):
        tensors.append(tensor.clone())
        tensor.mul_(2)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with as_process(0, 2):
        yield tensors


def test_tensors_are_added_up_in_few_buckets_of_one_dtype(sent, monkeypatch):
    monkeypatch.setattr(processes, "BUCKET_BYTES", 100)
    kinds = [(3, 4), (2, 2), (1,), (50,), (2,), (0,), ()]
    given = [torch.randn(shape, dtype=torch.bfloat16 if shape == (2,) else torch.float32) for shape in kinds]
    given[0] = given[0].T
    expected = [2 * tensor for tensor in given]
    processes.add_up(given)
    assert all(map(torch.equal, given, expected))
    assert [(len(bucket), bucket.dtype) for bucket in sent] == [
        (17, torch.float32),
        (50, torch.float32),  # larger than a bucket
        (2, torch.bfloat16),
        (1, torch.float32),
    ]


def test_a_low_rank_phase_sends_the_gradients_of_what_it_trains_alone(tiny, tmp_path, sent):
    run = changed(tiny)
    corpus = open_corpus(run.data, tmp_path, sequence_length=32)
    objective, state = LanguageModelling(run, corpus), states.initial(run, corpus.vocab_size)
    update(state, objective)
    [full_rank] = sent
    states.begin_low_rank(state, run.low_rank)
    update(state, objective)
    low_rank, layers = sent[1], state.layers.values()
    factors = sum(factor.numel() for layer in layers for factor in (layer.lora_A, layer.lora_B))
    assert len(full_rank) - len(low_rank) == sum(layer.weight.numel() for layer in layers) - factors
    assert len(low_rank) == sum(weight.numel() for weight in state.trained) + 1  # and the loss


@pytest.fixture
def in_torchrun(monkeypatch):
    """Be the second of two processes, to look at."""
    given = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("in_torchrun")
def test_a_gpu_of_its_own_is_asked_for_by_no_number():
    with as_process(1, 2):
        assert processes.own_device("cuda") == "cuda:1"
        assert processes.own_device("cpu") == "cpu"
        with pytest.raises(BadInput, match=r"training\.device: 'cuda:1' would be that of all 2 processes"):
            processes.own_device("cuda:1")
    assert processes.own_device("cuda:1") == "cuda:1"


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    torchrun.require_alone("grid")
    with processes.joined():
        assert (processes.count(), processes.rank(), processes.totals(1.5, 2)) == (1, 0, [1.5, 2])
    monkeypatch.setenv("WORLD_SIZE", "2")  # as some schedulers do
    torchrun.require_alone("grid")


@pytest.mark.usefixtures("in_torchrun")
def test_a_grid_is_refused_in_several_processes():
    with pytest.raises(BadInput, match="grid: does not train in the 2 processes of torchrun"):
        torchrun.require_alone("grid")
