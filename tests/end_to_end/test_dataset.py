"""A run on shards in C4's layout with a BPE trained on them: to weights and a tokenizer that transformers opens."""

import gzip
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import changed, tiny_tables
from transformers import AutoModelForCausalLM, AutoTokenizer

from relora_lab import data, train
from relora_lab.config import differences
from relora_lab.runs import RunFolder
from relora_lab.workspace import token_cache

TRAINING_TOKENS = 20_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one dataset, streaming and not: settings and run folder."""
    here = tmp_path_factory.mktemp("dataset")
    (here / "c4" / "en").mkdir(parents=True)
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:30]
    documents = [part for module in modules for part in module.read_text().split("\n\n\n")]
    shards = {"train.00000-of-00002": documents[1::3], "train.00001-of-00002": documents[2::3]}
    for name, texts in (shards | {"validation.00000-of-00001": documents[::3]}).items():
        rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b/c"} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (here / "c4" / "en" / f"c4-{name}.json.gz").write_bytes(gzip.compress(lines.encode()))
    dataset = {"dataset": str(here / "c4"), "subset": "en", "tokenizer": "bpe", "vocab_size": 600}
    tables = tiny_tables()
    del tables["data"]["corpus"]
    made = []
    for streaming in (False, True):
        limits = {"streaming": streaming, "max_tokens": TRAINING_TOKENS}
        config = changed(tables, data={**dataset, **limits})
        made.append((config, RunFolder(train.run(config, here / "runs" / f"streaming-{streaming}"))))
    return made


def test_streaming_or_not_the_tokens_and_so_the_run_are_the_same(runs):
    corpora = [data.open_corpus(c.data, token_cache(run.path.parent), sequence_length=32) for c, run in runs]
    assert len(corpora[0].train) == TRAINING_TOKENS
    assert len(corpora[0].held_out) == TRAINING_TOKENS // 20
    assert corpora[0].folder != corpora[1].folder
    assert corpora[0].text_sha256 == corpora[1].text_sha256
    assert np.array_equal(corpora[0].train, corpora[1].train)
    assert np.array_equal(corpora[0].held_out, corpora[1].held_out)
    names = sorted(path.name for path in (runs[0][1].path / "final").iterdir())
    for name in names:
        assert len({(run.path / "final" / name).read_bytes() for _, run in runs}) == 1


def test_transformers_opens_model_and_tokenizer_and_they_fit(runs):
    _, run = runs[0]
    for which in ("warm_start", "final"):
        model = AutoModelForCausalLM.from_pretrained(run.path / which)
        tokenizer = AutoTokenizer.from_pretrained(run.path / which)
        embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
        assert {len(tokenizer), model.config.vocab_size, *(len(e.weight) for e in embeddings)} == {600}
        assert tokenizer.eos_token_id == model.config.eos_token_id == 0
        assert tokenizer.decode(0) == "<|endoftext|>"
        text = "def f(x):\n    return x  # é\n"
        encoded = tokenizer(text, return_tensors="pt")
        assert tokenizer.decode(encoded["input_ids"][0]) == text
        with torch.no_grad():
            assert torch.isfinite(model(encoded["input_ids"]).logits).all()


def test_the_run_says_what_it_was_made_from(runs):
    config, run = runs[0]
    corpus = run.environment["corpus"]
    assert (corpus["tokenizer"], corpus["vocab_size"]) == ("bpe", 600)
    assert (corpus["training_tokens"], corpus["held_out_tokens"]) == (TRAINING_TOKENS, TRAINING_TOKENS // 20)
    assert run.state == "finished"
    assert run.final_evaluation["loss"] < np.log(600) - 0.3
    assert differences(run.config, config) == {}
    assert train.run(config, run.path, resume=True) == run.path
