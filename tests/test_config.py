"""Settings: what is read is what was written, and every mistake is one line that names its field."""

import dataclasses
import tomllib

import pytest
from conftest import changed
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import config
from relora_lab.errors import BadInput

# field set to what -> what the message must say
BAD = [
    ("method.restart_evrey=200", r"unknown field 'restart_evrey'.*did you mean 'restart_every'\?"),
    ("trainig.steps=3", r"unknown field 'trainig'.*did you mean 'training'\?"),
    ("optimizer.betass=[0.9, 0.9]", r"unknown field 'betass'.*did you mean 'betas'\?"),
    ("training.lr=0.1", "'lr' belongs under 'optimizer'"),
    ("lr=0.1", "'lr' belongs under 'optimizer'"),
    ("training.eps=1", r"'eps' belongs under 'optimizer', not in \[training\]"),
    ("training.merge_every=3", r"'merge_every' belongs under 'method' \(of online_relora\)"),
    ("model.training.steps=3", r"unknown field 'training' in \[model\]; it belongs at the top"),
    ("training.restart_evry=3", r"did you mean 'restart_every' \(in \[method\]\)\?"),
    ("method.qwxyz=3", r"unknown field 'qwxyz' in \[method\]; there are rank, alpha, base"),
    ("method.RANK=3", r"unknown field 'RANK' in \[method\]; did you mean 'rank'\?"),
    ("optimizer.restart_every=3", "'restart_every' belongs under 'method'"),
    ("method.restart_every=0", r"method.restart_every: must be ≥ 1 \(got 0\).*without restarts use"),
    ("method.restart_every=-5", r"method.restart_every: must be ≥ 1 \(got -5\)"),
    ("method.rank=0", r"method.rank: must be ≥ 1 \(got 0\)"),
    ("method.rank=17", r"method.rank: rank 17 > min\(16, 16\) = 16 for model.layers.0.self_attn.q_proj"),
    ("training.warm_start=60", r"training.warm_start: .*\(60\) must be shorter than training \(60\)"),
    ("training.warm_start=2000", r"warm start \(2000\) must be shorter than training \(60\)"),
    ("method.restart_warmup=14", r"method.restart_warmup: 14 leaves no step at full rate in a cycle of 14"),
    ("method.reset_ratio=1.5", r"method.reset_ratio: must be in \[0, 1\) \(got 1.5\)"),
    ("method.reset_ratio=99.0", r"must be in \[0, 1\) \(got 99; did you mean 0.99\?\)"),
    ("method.reset_ratio=1", r"\(got 1; to reset all use method.optimizer_reset = 'zero'\)"),
    ('optimizer.lr="1e-3"', 'optimizer.lr: expected a number, got text "1e-3"; write it without quotes'),
    ("optimizer.lr=nan", "optimizer.lr: expected a positive number, got nan"),
    ("optimizer.lr=inf", "optimizer.lr: expected a positive number, got inf"),
    ("optimizer.lr=-1", "optimizer.lr: expected a positive number, got -1"),
    ("optimizer.lr=true", "optimizer.lr: expected a number, got true"),
    ("optimizer.lr=[1]", r"optimizer.lr: expected a number, got \[1\]"),
    ("training.steps=1.5", "training.steps: expected a whole number, got 1.5"),
    ("training.steps=true", "training.steps: expected a whole number, got true"),
    ("training.steps=nan", "training.steps: expected a whole number, got nan"),
    ("method.restart_every=none", 'expected a whole number, got text "none"; for none leave the field out'),
    ("method.restart_every=false", "expected a whole number, got false; for none leave the field out"),
    ("training.seed=-1", "training.seed: must be ≥ 0"),
    ("training.seed=9223372036854775808", "seed: expected a whole number, got a whole number beyond 64 bits"),
    (
        "training.snapshot_every=0",
        r"training.snapshot_every: must be ≥ 1 \(got 0\); to keep no snapshots leave it out",
    ),
    ("training.snapshot_every=-5", r"training.snapshot_every: must be ≥ 1 \(got -5\)"),
    ("training.snapshot_every=1.5", "training.snapshot_every: expected a whole number, got 1.5"),
    ("training.snapshots_every=9", r"unknown field 'snapshots_every'.*did you mean 'snapshot_every'\?"),
    ("training.reference_step=61", "training.reference_step: 61 lies outside"),
    ("training.micro_batches=3", r"training.micro_batches: 3 does not divide data.batch_size \(4\)"),
    ("method.name=relroa", "unknown method 'relroa'; did you mean 'relora'"),
    ("method.name=ReLoRA", "unknown method 'ReLoRA'; did you mean 'relora'"),
    ("method.name=full", "method.rank: is no setting of full but of galore, lora,"),
    ("method.optimizer_reset=half", "method.optimizer_reset: expected 'none' or 'zero' or 'magnitude' or 'random'"),
    ("method.base=zero", "method.base: a base of zero would throw the warm start away"),
    ("model.size=130m", "did you mean '130M'"),
    ("model.heads=3", "model.heads: 3 heads do not divide"),
    ("optimizer.warmup_steps=15", r"warmup_steps \(15\) must be ≤ restart_every \(14\)"),
    ("optimizer.betas=[0.9]", "optimizer.betas: expected two numbers"),
    ("optimizer.betas=[0.9, 1.0]", r"optimizer.betas: must be in \[0, 1\)"),
    ("training.threads=100000", r"training.threads: must be ≤ 1024"),
    ("schema_version=true", "schema_version: expected a whole number ≥ 1, got true"),
    ("schema_version=0", "schema_version: expected a whole number ≥ 1, got 0"),
    ('data.corpus=[""]', "data.corpus: is empty"),
    ("data.dataset=allenai/c4", r"data.corpus: a dataset is given too \(data.dataset\)"),
    ("data.subset=en", "data.subset: only for a data.dataset"),
    ("data.text_field=body", "data.text_field: only for a data.dataset"),
    ("data.streaming=true", "data.streaming: only for a data.dataset"),
    ("data.max_tokens=1000", "data.max_tokens: only for a data.dataset"),
    ('data.tokenizer=""', "data.tokenizer: is empty"),
    ("data.vocab_size=300", r"data.vocab_size: bytes have a vocabulary of 256 \(got 300\)"),
    ("data.vocab_size=-1", r"data.vocab_size: bytes have a vocabulary of 256 \(got -1\)"),
    ("data.streaming=1", "data.streaming: expected true or false"),
    ('method.name="re\\nlora"', r"unknown method 're\\nlora'"),
    (f"method.{'x' * 10_000}=3", "unknown field 'xxx"),
    ("training.steps=" + "[" * 5000, "training.steps: expected a whole number"),
    ("schema_version=2", r"newer version \(schema 2, this reads ≤ 1\)"),
    ('name="../x"', "no run name: letters, digits"),
    ('name="a/b"', "no run name"),
    ('name=".."', "no run name"),
    ('name="-rf"', "no run name"),
    ('name=""', "no run name"),
    (f'name="{"x" * 10_000}"', "no run name"),
]


@pytest.mark.parametrize(("override", "message"), BAD, ids=[override[:40] for override, _ in BAD])
def test_a_bad_setting_is_one_line_that_names_its_field(tiny, tmp_path, override, message):
    path = tmp_path / "run.toml"
    path.write_text(config.dumps(changed(tiny)))
    with pytest.raises(BadInput, match=message) as caught:
        config.load(path, [override])
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    assert len(text) < 700


@pytest.mark.parametrize(("table", "field"), [("model", "size"), ("training", "steps"), ("optimizer", "lr")])
def test_a_missing_field_is_named(tiny, table, field):
    del tiny[table][field]
    with pytest.raises(BadInput, match=f"{table}.{field}: is missing"):
        config.parse(tiny)


def test_what_is_no_toml_is_said_so(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("[model\n")
    with pytest.raises(BadInput, match="not valid TOML"):
        config.load(path)
    with pytest.raises(BadInput, match="cannot be read"):
        config.load(tmp_path / "none.toml")
    path.write_bytes(b"# \xff")
    with pytest.raises(BadInput, match=r"x\.toml: is not UTF-8 text \(byte 2\)"):
        config.load(path)


def test_a_byte_order_mark_does_no_harm(tiny, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(config.dumps(changed(tiny)), encoding="utf-8-sig")
    assert config.digest(config.load(path)) == config.digest(changed(tiny))


def test_settings_made_in_python_are_held_to_the_same_rules(tiny):
    good = changed(tiny)
    with pytest.raises(BadInput, match=r"training\.warm_start"):
        dataclasses.replace(good, training=dataclasses.replace(good.training, warm_start=99))


def test_toggles_without_a_period_are_refused(tiny):
    for toggle in ({"jagged": True}, {"optimizer_reset": "zero"}):
        with pytest.raises(BadInput, match=r"set method\.restart_every"):
            changed(tiny, method={"name": "lora", "rank": 2, **toggle})
    with pytest.raises(BadInput, match="relora needs it"):
        config.parse({**tiny, "method": {"name": "relora", "rank": 2}})


def test_all_sixteen_toggle_combinations_are_settings(tiny):
    found = set()
    for method in ("lora", "relora"):
        for reset in ("none", "magnitude"):
            for jagged in (False, True):
                for warm_start in (0, 20):
                    settings = {"rank": 2, "restart_every": 14, "restart_warmup": 3}
                    made = changed(
                        tiny,
                        method={"name": method, "optimizer_reset": reset, "jagged": jagged, **settings},
                        training={"warm_start": warm_start},
                    )
                    found.add(config.digest(made))
    assert len(found) == 16


@given(
    steps=st.integers(1, 10**6),
    seed=st.integers(0, 2**31),
    lr=st.floats(1e-9, 10),
    rank=st.integers(1, 16),
    alpha=st.none() | st.floats(0.01, 1000),
    every=st.integers(11, 10**6),
    ratio=st.floats(0, 0.9999),
    base=st.sampled_from(["random", "zero"]),
)
def test_settings_survive_toml(steps, seed, lr, rank, alpha, every, ratio, base):
    method = {"name": "relora", "rank": rank, "base": base, "restart_every": every, "restart_warmup": 10}
    made = config.parse(
        {
            "model": {"size": "demo", "hidden": 16, "heads": 2},
            "method": {**method, "reset_ratio": ratio} | ({} if alpha is None else {"alpha": alpha}),
            "training": {"steps": steps, "seed": seed},
            "optimizer": {"lr": lr},
        }
    )
    again = config.parse(tomllib.loads(config.dumps(made)))
    assert config.as_table(again) == config.as_table(made)
    assert config.digest(again) == config.digest(made)
    assert config.differences(made, again) == {}


def test_defaults_are_resolved_in_what_is_written(tiny):
    del tiny["optimizer"]["low_rank_lr"]
    written = tomllib.loads(config.dumps(changed(tiny)))
    assert written["method"]["alpha"] == 2.0
    assert written["training"]["reference_step"] == 20
    assert written["optimizer"]["low_rank_lr"] == 3e-3
    assert written["schema_version"] == 1


def test_the_digest_does_not_know_the_name_and_knows_everything_else(tiny):
    one = changed(tiny)
    assert config.digest(config.parse({**tiny, "name": "other"})) == config.digest(one)
    assert config.digest(changed(tiny, training={"seed": 1})) != config.digest(one)
    assert config.run_name(one) == f"relora-demo-0-{config.digest(one)}"


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({}, []),
        ({"snapshot_every": 10}, [30, 40, 50]),  # neither at the warm start's end, 20, nor at the run's, 60
        ({"snapshot_every": 7}, [21, 28, 35, 42, 49, 56]),
        ({"snapshot_every": 10, "reference_step": 40}, [50]),
        ({"snapshot_every": 10, "reference_step": 10}, [30, 40, 50]),
        ({"snapshot_every": 10, "warm_start": 0}, [10, 20, 30, 40, 50]),
        ({"snapshot_every": 1, "reference_step": 57}, [58, 59]),
        ({"snapshot_every": 1, "reference_step": 60}, []),
        ({"snapshot_every": 60}, []),
        ({"snapshot_every": 1000}, []),
    ],
)
def test_snapshots_are_due_after_reference_and_warm_start_and_before_the_end(tiny, training, steps):
    made = changed(tiny, training=training)
    assert list(made.training.snapshot_steps) == steps
    never = [warning for warning in made.warnings() if "training.snapshot_every" in warning]
    assert len(never) == ("snapshot_every" in training and not steps)


def test_settings_without_snapshots_are_written_as_before_there_were_any(tiny):
    without, with_them = changed(tiny), changed(tiny, training={"snapshot_every": 10})
    assert "snapshot_every" not in config.as_table(without)["training"]
    assert "snapshot" not in config.dumps(without)
    assert config.parse(tomllib.loads(config.dumps(with_them))).training.snapshot_every == 10
    assert config.digest(with_them) != config.digest(without)


def test_what_is_seldom_meant_is_warned_of(tiny):
    assert changed(tiny).warnings() == []
    late = changed(tiny, method={"restart_every": 50}).warnings()
    assert len(late) == 1
    assert "never comes within the 40 low-rank steps" in late[0]
    assert "more parameters than the whole model" in changed(tiny, method={"rank": 16}).warnings()[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"streaming": True}, "data.max_tokens: is needed with data.streaming, which reads until"),
        ({"max_tokens": 32}, r"data.max_tokens: must be ≥ 33 \(got 32\)"),
        ({"subset": ""}, "data.subset: is empty"),
        ({"text_field": ""}, "data.text_field: is empty"),
        ({"tokenizer": "bpe", "vocab_size": 256}, r"data.vocab_size: must be ≥ 257 \(got 256\)"),
        ({"tokenizer": "google-t5/t5-base", "vocab_size": 0}, r"data.vocab_size: must be ≥ 1 \(got 0\)"),
    ],
)
def test_settings_of_a_dataset_that_do_not_fit_are_refused(tiny, fields, message):
    tiny["data"] = {"dataset": "allenai/c4", "sequence_length": 32, "batch_size": 4, **fields}
    with pytest.raises(BadInput, match=message):
        config.parse(tiny)


def test_settings_of_a_dataset_are_written_as_they_are_meant(tiny):
    tiny["data"] = {"dataset": "allenai/c4", "subset": "en", "streaming": True, "max_tokens": 10**9, "batch_size": 4}
    t5 = config.parse({**tiny, "data": {**tiny["data"], "tokenizer": "google-t5/t5-base", "vocab_size": 32000}})
    bpe = config.parse({**tiny, "data": {**tiny["data"], "tokenizer": "bpe"}})
    assert bpe.data.vocabulary == 4096
    assert config.as_table(bpe)["data"]["vocab_size"] == 4096
    for made in (t5, bpe):
        read = config.parse(tomllib.loads(config.dumps(made)))
        assert config.as_table(read) == config.as_table(made)
        assert config.digest(read) == config.digest(made)
