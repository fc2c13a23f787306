"""Floating-point operations of a run, by what is known of transformers."""

import pytest
from conftest import changed

from relora_lab import sizes, work


def of_tiny(tiny, **parts):
    run = changed(tiny, **parts)
    return run, run.data.batch_size * run.data.sequence_length


def test_an_update_at_full_rank_is_six_operations_a_token_and_weight_and_the_attention(tiny):
    run, tokens = of_tiny(tiny)
    shape = run.model.shape
    matrices = sum(matrix.rows * matrix.cols for matrix in sizes.matrices(shape)) + 256 * shape.hidden
    attention = 12 * shape.layers * tokens * run.data.sequence_length * shape.hidden
    assert work.update_flops(run, low_rank=False) == 6 * tokens * matrices + attention


def test_low_rank_updates_need_less_and_merge_once_for_all_micro_batches():
    rank, tokens, rows = 8, 4096, 512
    full, low = (work.matrix_flops(rows, rows, of, tokens) for of in (None, rank))
    thin = 2 * tokens * rank * 2 * rows
    assert low == 4 * tokens * rows**2 + 2 * rows**2 * rank + 2 * thin < full
    split = work.matrix_flops(rows, rows, rank, tokens // 4, passes=4)
    assert split == low
    few = work.matrix_flops(rows, rows, rank, 16)
    assert few == 4 * 16 * rows**2 + 3 * (thin * 16 // tokens)  # no merge for 16 tokens


def test_a_run_is_its_warm_start_its_low_rank_phase_and_its_evaluations(tiny):
    run, tokens = of_tiny(tiny)
    full, low = (work.update_flops(run, low_rank=phase) for phase in (False, True))
    evaluations = 2 * 512 * full // (3 * tokens)  # at 25 and 50
    assert work.run_flops(run) == pytest.approx(20 * full + 40 * low + evaluations, rel=1e-12)


def test_checkpointing_computes_the_blocks_forward_again(tiny):
    run, tokens = of_tiny(tiny)
    again, _ = of_tiny(tiny, training={"gradient_checkpointing": True})
    more = work.update_flops(again, low_rank=False) - work.update_flops(run, low_rank=False)
    assert more == (work.update_flops(run, low_rank=False) - 6 * tokens * 256 * run.model.shape.hidden) / 3
