"""The peak of real training is the planned one."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

from relora_lab import config, process, tokenizer
from relora_lab.memory.phases import peak

RELORA_RUN = {"name": "relora", "rank": 64, "restart_every": 2, "restart_warmup": 1}
CHECKPOINTED = {"gradient_checkpointing": True, "precision": "bf16-autocast"}
AUTOCAST = {"precision": "bf16-autocast"}
ONE_LAYER = {"layers": 1, "hidden": 256, "intermediate": 512}
FEW = {"batch_size": 2, "sequence_length": 32}
MANY_WORDS = {"vocab_size": 16000, "batch_size": 24}
REAL = {
    "full": {},
    "full_long": {"data": {"batch_size": 24}, "model": ONE_LAYER},
    "full_accumulated": {"data": {"batch_size": 16}, "training": {"micro_batches": 2}},
    "full_checkpointed": {"data": {"batch_size": 24}, "training": CHECKPOINTED},
    "full_autocast": {"data": {"batch_size": 16}, "training": AUTOCAST},
    "full_many_words": {"data": MANY_WORDS, "model": ONE_LAYER},
    "full_many_words_autocast": {"data": MANY_WORDS, "model": ONE_LAYER, "training": AUTOCAST},
    "full_many_words_bf16": {
        "data": MANY_WORDS,
        "model": ONE_LAYER,
        "training": {"precision": "bf16"},
        "optimizer": {"state_dtype": "bf16"},
    },
    "relora": {"method": RELORA_RUN},
    "relora_autocast": {"method": RELORA_RUN, "training": AUTOCAST},
    "relora_accumulated": {"method": RELORA_RUN, "data": {"batch_size": 16}, "training": {"micro_batches": 2}},
    "relora_rebuilt": {"method": RELORA_RUN, "data": {"batch_size": 24}, "training": {"rebuild_weights": True}},
    "relora_checkpointed": {"method": RELORA_RUN, "data": {"batch_size": 24}, "training": CHECKPOINTED},
    "relora_few_tokens": {"method": RELORA_RUN, "data": FEW, "model": {"layers": 4}},
    "redora": {"method": RELORA_RUN | {"name": "redora"}},
    "redora_autocast": {"method": RELORA_RUN | {"name": "redora"}, "training": AUTOCAST},
    "galore": {"method": {"name": "galore", "rank": 64, "error_feedback": 0.1}},
    "adam_mini": {"method": {"name": "adam_mini"}, "data": {"sequence_length": 16}},
}

MEASURE = """
import json, shutil, sys
from pathlib import Path

from relora_lab import config, data, process, train
from relora_lab.workspace import token_cache

runs, tables = Path(sys.argv[1]), json.load(sys.stdin)
for name, table in tables.items():
    run = config.parse(table)
    data.open_corpus(run.data, token_cache(runs), sequence_length=run.data.sequence_length)
    process.reset_peak("cpu")
    before = process.peak_bytes("cpu")
    train.run(run, runs / name)
    print(json.dumps([name, process.peak_bytes("cpu") - before]))
    shutil.rmtree(runs / name)
"""


def real_run(changes, tokens):
    """The tables of a run of three updates, large enough that what torch takes for itself is small beside it.

    `tokens` is the folder of a tokenizer, which lets a vocabulary have any size.
    """
    base = {
        "model": {"size": "demo", "hidden": 512, "intermediate": 1376, "heads": 8, "init_std": 0.02},
        "data": {
            "corpus": argparse.__file__,
            "tokenizer": str(tokens),
            "vocab_size": 1900,
            "sequence_length": 128,
            "batch_size": 8,
        },
        "training": {"steps": 3, "eval_tokens": 512, "eval_every": 100},
        "optimizer": {"lr": 1e-4},
    }
    tables = {name: part | changes.get(name, {}) for name, part in base.items()}
    return tables | {"method": changes.get("method", {"name": "full"})}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc/self/clear_refs")
def test_the_peak_of_real_training_is_the_planned_one(tmp_path):
    small = {"model": {"hidden": 32, "intermediate": 64, "heads": 2}}
    first = {"first": small, "first_autocast": small | {"training": AUTOCAST}}  # loads the libraries' code
    tokenizer.byte_tokenizer().save_pretrained(tmp_path / "bytes")
    tables = {name: real_run(table, tmp_path / "bytes") for name, table in {**first, **REAL}.items()}
    # Otherwise glibc keeps freed memory, and what is measured depends on its history.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        input=json.dumps(tables),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    measured = dict(json.loads(line) for line in done.stdout.splitlines())
    for name in first:
        del tables[name], measured[name]
    planned = {name: peak(config.parse(table)) for name, table in tables.items()}
    for name, (moment, cells) in planned.items():
        ratio = cells.total / measured[name]
        print(
            f"{name:<25} {measured[name] / 2**20:7.1f} MiB, planned {cells.total / 2**20:7.1f} ({moment}) {ratio:.3f}"
        )
    assert list(measured) == list(planned)
    assert min(measured.values()) > 100 * 2**20
    for name, (_, cells) in planned.items():
        assert cells.total == pytest.approx(measured[name], rel=0.1), name


def test_peak_bytes_grows_with_what_is_held():
    process.reset_peak("cpu")
    before = process.peak_bytes("cpu")
    held = torch.ones(2**24)
    assert process.peak_bytes("cpu") - before >= held.nbytes * 0.9
