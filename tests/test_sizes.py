"""The papers' sizes: parameter counts to the last digit."""

import pytest

from relora_lab import models, sizes
from relora_lab.errors import BadInput
from relora_lab.lowrank import wrap

# P1 Table 2 at vocabulary 32000 and r = 128: total, and embeddings + head + norms + A, B.
PAPER = {
    "60M": (58_073_600, 42_770_944),
    "130M": (134_105_856, 71_584_512),
    "250M": (247_370_496, 98_734_848),
    "350M": (367_969_280, 125_404_160),
    "1.3B": (1_339_082_752, 250_706_944),
}


@pytest.mark.parametrize("size", PAPER)
def test_counts_of_the_paper(size):
    assert sizes.count_parameters(size, rank=128) == PAPER[size]
    assert sizes.count_parameters(size) == (PAPER[size][0],) * 2


def test_7b_is_llamas():
    assert sizes.count_parameters("7B")[0] == 6_738_415_616  # as its checkpoints have


@pytest.mark.parametrize("size", ["demo", "control:demo", "9M"])
@pytest.mark.parametrize("rank", [None, 4])
def test_counts_are_those_of_the_model_built(size, rank):
    model = models.build(size, vocab_size=256)
    total = sum(p.numel() for p in model.parameters())
    if rank is not None:
        wrap(model, rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (total, trained) == sizes.count_parameters(size, rank=rank, vocab_size=256)


def test_matrices_are_those_that_wrap_finds_with_their_shapes():
    layers = wrap(models.build("demo", vocab_size=256), 1)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    assert shapes == {m.name: (m.rows, m.cols) for m in sizes.matrices("demo")}
    assert [m.role for m in sizes.matrices("demo")][:7] == ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.mark.parametrize(
    ("size", "control"), [("60M", "40M"), ("130M", "71M"), ("250M", "99M"), ("350M", "130M"), ("1.3B", "250M")]
)
def test_control_is_the_full_rank_size_nearest_to_what_low_rank_trains(size, control):
    assert sizes.resolve(f"control:{size}") == sizes.resolve(control)
    trainable = sizes.count_parameters(size, rank=128)[1]
    assert abs(sizes.count_parameters(control)[0] / trainable - 1) < 0.1


def test_control_of_the_demo_has_27384_parameters():
    assert sizes.count_parameters("control:demo", vocab_size=256)[0] == 27_384


def test_unknown_size_names_the_nearest():
    with pytest.raises(BadInput, match="unknown size '130m'; did you mean '130M'"):
        sizes.resolve("130m")
