"""The loss of language modelling is transformers' own, and what spares memory does not change what is trained."""

import pytest
import torch
from conftest import changed
from transformers import LlamaForCausalLM

from relora_lab import lowrank, models
from relora_lab import state as states
from relora_lab.data import open_corpus
from relora_lab.objective import LanguageModelling
from relora_lab.update import update


def begin(tiny, tmp_path, **changes):
    """A run's objective and its state, low-rank from the start."""
    run = changed(tiny, **{"training": {"warm_start": 0}, **changes})
    corpus = open_corpus(run.data, tmp_path, sequence_length=run.data.sequence_length)
    objective, state = LanguageModelling(run, corpus), states.initial(run, corpus.vocab_size)
    states.begin_low_rank(state, run.low_rank)
    return objective, state


def plain(model):
    """The same weights in a model straight from transformers."""
    other = LlamaForCausalLM(model.config)
    other.load_state_dict(lowrank.merged_state_dict(model))
    return other


def test_the_loss_is_that_of_transformers(tiny, tmp_path):
    objective, state = begin(tiny, tmp_path)
    batch, other = objective.batch(3), plain(state.model)
    found, expected = objective.loss(state.model, batch), other(input_ids=batch, labels=batch).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    head, embedding = (model.lm_head.weight for model in (state.model, other)), "model.embed_tokens.weight"
    found.backward()
    expected.backward()
    torch.testing.assert_close(*(weight.grad for weight in head), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(*(m.get_parameter(embedding).grad for m in (state.model, other)), rtol=1e-5, atol=1e-7)


def test_rounding_what_norms_give_changes_no_bit_of_the_loss_under_autocast(tiny, tmp_path):
    objective, _ = begin(tiny, tmp_path, training={"precision": "bf16-autocast", "warm_start": 0})
    ours, batch = models.build("demo", vocab_size=256), objective.batch(0)
    other = plain(ours)
    losses = [objective.loss(model, batch) for model in (ours, other)]
    assert torch.equal(*losses)
    # Gradients of q, k and v are summed in bfloat16 then.
    for loss in losses:
        loss.backward()
    for one, another in zip(ours.parameters(), other.parameters(), strict=True):
        assert float((one.grad - another.grad).abs().max()) <= 2**-5 * float(another.grad.abs().max())


@pytest.mark.parametrize("method", ["relora", "redora"])
@pytest.mark.parametrize(
    "variant", [{"micro_batches": 4}, {"rebuild_weights": True}, {"gradient_checkpointing": True}]
)
def test_what_spares_memory_trains_the_same(tiny, tmp_path, variant, method):
    def losses(**training):
        name = tiny["method"] | {"name": method}
        objective, state = begin(tiny, tmp_path, method=name, training={"warm_start": 0, **training})
        return torch.tensor([update(state, objective).loss for _ in range(8)])

    torch.testing.assert_close(losses(**variant), losses(), rtol=2e-6, atol=0)
