"""Adam-mini: the public code's numbers, who shares a second moment with whom, and that names do not matter."""

import io

import numpy as np
import pytest
import torch
from conftest import tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, T5Config, T5EncoderModel

from relora_lab.lowrank import wrap
from relora_lab.optim.adam_mini import AdamMini, blocks

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


def llama(kind=LlamaForCausalLM, dtype=torch.float32, **changes) -> nn.Module:
    torch.manual_seed(0)
    return kind(LlamaConfig(**{**SIZES, **changes})).to(dtype)


def counts(model: nn.Module, partition: str = "paper") -> dict[str, int]:
    """Blocks by parameter name; every vector must be free of decay and nothing else."""
    found = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in blocks(model, partition):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            assert ("weight_decay" in group) == (parameter.dim() == 1)
            assert group.get("weight_decay", 0) == 0
            found[names[id(parameter)]] = group["blocks"]
    return found


def expected(model: nn.Module, partition: str, heads: int = 4, kv_heads: int = 4) -> dict[str, int]:
    """The partition of a plain LLaMA, by the names that transformers gives."""
    by_name = {}
    for name, p in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            by_name[name] = 1
        elif "q_proj" in name or "k_proj" in name:
            by_name[name] = heads if "q_proj" in name else kv_heads
        elif partition == "v1.1":
            by_name[name] = p.shape[0]
        else:
            by_name[name] = p.numel() if "embed_tokens" in name or "lm_head" in name else 1
    return by_name


def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=random).to(p.dtype) for p in model.parameters()]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        for parameter, gradient in zip(model.parameters(), gradients(model, t), strict=True):
            parameter.grad = gradient
        optimizer.step()


def deviation(a, b) -> float:
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max())


def test_equals_the_public_code():
    g = tensors("adam_mini_v1.0.4_kv4_wd0.0")
    model = llama()
    parameters = dict(model.named_parameters())
    assert {key.partition("/")[2] for key in g} == set(parameters)
    model.load_state_dict({name: g[f"w0/{name}"] for name in parameters})
    optimizer = AdamMini(blocks(model), 1e-3, (0.9, 0.95))
    for t in range(20):
        for name, parameter in parameters.items():
            parameter.grad = g[f"g/{name}"][t].clone()
        optimizer.step()
        for name, parameter in parameters.items():
            assert deviation(parameter.detach(), g[f"w/{name}"][t]) < 2e-6, name
    for name, parameter in parameters.items():
        assert deviation(optimizer.state[parameter]["exp_avg_sq"], g[f"v_final/{name}"]) < 2e-6, name


@given(
    partition=st.sampled_from(["paper", "v1.1"]),
    kv_heads=st.sampled_from([1, 2, 4]),
    decay=st.sampled_from([0.0, 0.1]),
    bias=st.booleans(),
)
def test_equals_the_definition_written_out(partition, kv_heads, decay, bias):
    model = llama(num_key_value_heads=kv_heads, attention_bias=bias, mlp_bias=bias)
    names = [name for name, _ in model.named_parameters()]
    n = expected(model, partition, kv_heads=kv_heads)
    W = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    m, v = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for t in range(1, 11):
        for name, gradient in zip(names, gradients(model, t), strict=True):
            G = gradient.double().numpy()
            m[name] = 0.9 * m[name] + 0.1 * G
            v[name] = 0.95 * v[name] + 0.05 * (G**2).reshape(n[name], -1).mean(1)
            denominator = np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8
            W[name] *= 1 - 1e-3 * (decay if G.ndim > 1 else 0)
            W[name] -= 1e-3 * ((m[name] / (1 - 0.9**t)).reshape(n[name], -1) / denominator[:, None]).reshape(G.shape)
    optimizer = AdamMini(blocks(model, partition), 1e-3, (0.9, 0.95), weight_decay=decay)
    train(model, optimizer, range(1, 11))
    for name, parameter in model.named_parameters():
        assert deviation(parameter.detach(), W[name]) < 2e-6, name
        state = optimizer.state[parameter]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert state["exp_avg_sq"].shape == (n[name],)
        assert deviation(state["exp_avg_sq"], v[name]) < 2e-6, name


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_pytorch_optimizer(kv_heads, decay):
    theirs = pytest.importorskip("pytorch_optimizer")
    model, twin = (llama(num_key_value_heads=kv_heads) for _ in range(2))
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay}
    train(model, AdamMini(blocks(model), **options), range(20))
    reference = theirs.AdamMini(twin, num_embeds=16, num_heads=4, num_query_groups=kv_heads, **options)
    train(twin, reference, range(20))
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert deviation(parameter.detach(), other.detach()) < 2e-6, name


@pytest.mark.parametrize("partition", ["paper", "v1.1"])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"attention_bias": True, "mlp_bias": True}])
def test_partition_of_a_llama(partition, changes):
    model = llama(**changes)
    wanted = expected(model, partition, kv_heads=changes.get("num_key_value_heads", 4))
    assert counts(model, partition) == wanted


@pytest.mark.parametrize("partition", ["paper", "v1.1"])
@pytest.mark.parametrize("name", ["embed_something", "lm_head_block", "q_proj_norm"])
def test_names_do_not_matter(name, partition):
    model = llama(num_key_value_heads=2)
    wrapper = nn.ModuleDict({name: model})
    wanted = {f"{name}.{inner}": n for inner, n in expected(model, partition, kv_heads=2).items()}
    assert counts(wrapper, partition) == wanted


@pytest.mark.parametrize(("partition", "n"), [("paper", 480), ("v1.1", 30)])
def test_tied_embeddings_come_once(partition, n):
    model = llama(tie_word_embeddings=True)
    found = counts(model, partition)
    assert found["model.embed_tokens.weight"] == n
    assert "lm_head.weight" not in found
    AdamMini(blocks(model, partition), 1e-3)


def test_a_model_without_a_head_has_none():
    assert counts(llama(LlamaForSequenceClassification, num_labels=3))["score.weight"] == 1
    plain = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    assert counts(plain) == {"0.weight": 20, "1.weight": 1, "1.bias": 1}
    assert counts(plain, "v1.1") == {"0.weight": 5, "1.weight": 5, "1.bias": 1}


def test_t5_has_heads_in_its_own_names():
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=3))
    found = counts(model)
    attention = "encoder.block.0.layer.0.SelfAttention"
    assert [found[f"{attention}.{name}.weight"] for name in "qkvo"] == [3, 3, 1, 1]
    assert found["shared.weight"] == 480


class Attention(nn.Module):
    """An attention module of one's own, without a config."""

    def __init__(self, **facts: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 12), nn.Linear(8, 6)
        self.__dict__.update(facts)


def test_heads_of_an_attention_module_of_ones_own():
    for facts in ({"head_dim": 3}, {"num_heads": 4}):
        found = counts(nn.ModuleDict({"a": Attention(**facts)}))
        assert found == {"a.q_proj.weight": 4, "a.k_proj.weight": 2, "a.q_proj.bias": 1, "a.k_proj.bias": 1}
    with pytest.raises(ValueError, match=r"^a: an attention module that says neither its heads nor their width"):
        blocks(nn.ModuleDict({"a": Attention()}))
    with pytest.raises(ValueError, match=r"^a\.q_proj: 12 rows are no whole number of heads of 5"):
        blocks(nn.ModuleDict({"a": Attention(head_dim=5)}))


def test_a_model_whose_attention_is_not_known_is_an_error():
    model = llama()
    model.model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match="no attention module in a model of 4 heads"):
        blocks(model)


def test_frozen_weights_do_not_come():
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    assert "lm_head.weight" not in counts(model)


def test_low_rank_factors_are_an_error():
    model = llama()
    wrap(model, 2)
    with pytest.raises(ValueError, match=r"no partition for low-rank factors; model\.layers\.0\.self_attn\.q_proj"):
        blocks(model)


def test_an_unknown_partition_is_an_error():
    with pytest.raises(ValueError, match=r"unknown 'v2'; one of paper, v1\.1"):
        blocks(llama(), "v2")


@pytest.mark.parametrize("group", [{}, {"blocks": 0}, {"blocks": 4}])
def test_groups_must_say_blocks_that_divide(group):
    with pytest.raises(ValueError, match=r"^blocks: "):
        AdamMini([{"params": [nn.Parameter(torch.ones(3, 3))], **group}], 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_goes_on_from_a_file_to_the_same_bits(dtype, state_dtype):
    model, twin = llama(dtype=dtype), llama(dtype=dtype)
    optimizer = AdamMini(blocks(model), 1e-2, weight_decay=0.1, state_dtype=state_dtype)
    train(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(model.state_dict())
    fresh = AdamMini(blocks(twin), 7.0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, range(5, 9))
    train(twin, fresh, range(5, 9))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[a][key].dtype == fresh.state[b][key].dtype == (state_dtype or dtype)
            assert torch.equal(optimizer.state[a][key], fresh.state[b][key])
