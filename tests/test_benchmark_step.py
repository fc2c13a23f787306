"""The benchmark of a step runs, covers what it says, and its arithmetic holds. Speed is not tested."""

import argparse
import json
import math

import pytest
import torch

from experiments.benchmarks import loop, peers, roofline, sides, step, training
from relora_lab import lowrank, sizes

TINY = ["--sequence", "8", "--micro-batch", "1", "--ranks", "4", "--repeats", "1", "--warmup", "1"]
DEMO = [*TINY, "--size", "demo", "--vocabulary", "300"]
ANY_TIME = 1e9  # ms: for the loop's limit
SIDES = ["full", "transformers", "relora 4", "peft 4", "textbook 4", "textbook+dropout 4"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Yardsticks and loops of no length, which no limit can hold; no processes."""
    monkeypatch.setattr(roofline, "PRODUCT", {"cpu": 16})
    monkeypatch.setattr(roofline, "COPIED", 2**10)
    monkeypatch.setattr(loop, "STEPS", (1, 3))
    monkeypatch.setitem(step.LIMITS, ("loop", "trainer", "bare loop"), {"float32": ANY_TIME})
    monkeypatch.setattr(step, "peak_alone", lambda side, *_: 2**20 * (1 + (side.rank or 0)))


@pytest.fixture
def usual(monkeypatch):
    """Make the tiny shape the one that limits count for, with a limit on two ratios."""
    monkeypatch.setattr(step, "SHAPES", dict.fromkeys(step.SHAPES, ({"size": "demo"}, 300)))
    monkeypatch.setattr(step, "SEQUENCE", 8)
    monkeypatch.setattr(step, "MICRO_BATCH", 1)
    limits = {"relora 4": {"float32": 0.0}, "full": {"float32": math.inf}}
    peers_of = {"relora 4": "peft 4", "full": "transformers"}
    monkeypatch.setattr(step, "LIMITS", {("step", ours, peers_of[ours]): most for ours, most in limits.items()})


def test_every_side_of_every_case_has_a_row(tmp_path, capsys):
    assert step.main([*DEMO, "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {(row["case"], row["precision"], row["side"]): row for row in found["rows"]}
    assert rows.keys() == {
        *(("step", precision, side) for precision in sides.AGREE_LOSS for side in SIDES),
        *(("vocabulary", "bf16-autocast", side) for side in ("full", "transformers")),
    }
    for (case, precision, side), row in rows.items():
        assert row["tokens/s"] == pytest.approx(8 / row["seconds"])
        assert row["roofline"] > 0
        assert (row["peak MiB"] is None) == (case == "vocabulary")
        agrees = side in ("transformers", "peft 4", "textbook 4")
        assert (row["loss off"] is not None) == (row["gradient off"] is not None) == agrees
        if agrees:
            assert row["gradient off"] <= sides.AGREE_GRADIENT[precision]
    for line in found["limits"]:
        column = {"step": "seconds", "vocabulary": "seconds", "memory": "peak MiB"}.get(line["case"])
        if column:
            of = "vocabulary" if line["case"] == "vocabulary" else "step"
            ours, peer = (rows[of, line["precision"], line[side]][column] for side in ("ours", "peer"))
            assert line["found"] == pytest.approx(ours / peer)
            assert line["verdict"] is None  # this is not the shape that limits are for
    assert {line["case"] for line in found["limits"]} == set(step.CASES)
    assert found["machine"]["torch"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows) + 2 + len(found["limits"])


@pytest.mark.usefixtures("usual")
def test_it_fails_where_a_limit_is_not_held(capsys):
    options = [*TINY, "--only", "step", "--precision", "float32"]
    assert step.main(options) == 1
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-5:]]
    assert verdicts == ["ok", "–", "over", "–", "–"]
    assert step.main([*options, "--sequence", "9"]) == 0
    assert step.main([*options, "--clock", "wall"]) == 0


def test_every_limit_is_one_that_is_measured():
    given = step.parse([])
    for case, ours, peer in step.LIMITS:
        if case != "loop":
            assert (ours, peer) in [(str(a), str(b)) for a, b in sides.pairs(case, given)]


@pytest.mark.usefixtures("usual")
def test_without_peft_its_sides_say_so(monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(step, "timed", lambda case, given, *_: {s: {"seconds": 1.0} for s in ran(case, given)})
    assert step.main([*TINY, "--only", "step", "memory", "--precision", "float32"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "peft 4" in line]
    assert len(lines) == 3
    assert all(line.endswith("not run (pip install peft)") for line in lines)


def ran(case: str, given: argparse.Namespace) -> list[sides.Side]:
    """The sides of a case that can run."""
    return [side for side in sides.of_case(case, given) if not peers.missing(side.method)]


def test_gradients_that_disagree_raise(monkeypatch):
    forward = peers.Unmerged.forward

    def doubled(self, x):
        self.scale = 2.0
        return forward(self, x)

    monkeypatch.setattr(peers.Unmerged, "forward", doubled)
    with pytest.raises(AssertionError, match="textbook 4 and relora 4 disagree in the gradient of"):
        step.main([*DEMO, "--only", "step", "--precision", "float32"])


def test_a_side_that_trains_less_disagrees(monkeypatch):
    with_textbook = peers.with_textbook

    def without_head(model, *options):
        with_textbook(model, *options).lm_head.requires_grad_(False)
        return model

    monkeypatch.setattr(peers, "with_textbook", without_head)
    with pytest.raises(AssertionError, match=r"textbook 4 and relora 4 disagree in the gradient of lm_head\.weight"):
        step.main([*DEMO, "--only", "step", "--precision", "float32"])


def test_losses_that_disagree_raise():
    full, relora = sides.Side("full"), sides.Side("relora", 4)
    theirs = sides.Side("transformers"), sides.Side("textbook+dropout", 4)
    losses = dict(zip((full, relora, *theirs), (5.0, 6.0, 5.0004, 7.0), strict=True))
    assert sides.loss_errors(losses, "float32") == {theirs[0]: pytest.approx(8e-5)}
    for loss in (5.01, math.nan):
        with pytest.raises(AssertionError, match="transformers and full disagree in the loss"):
            sides.loss_errors(losses | {theirs[0]: loss}, "float32")
    sides.loss_errors(losses | {theirs[0]: 5.01}, "bf16-autocast")


def test_products_of_a_matrix_are_counted_as_said():
    flops = roofline.matrix_flops
    assert flops("full", 2, 3, None, 5) == 6 * 5 * 6
    assert flops("textbook", 2, 3, 1, 5) == flops("peft", 2, 3, 1, 5) == 4 * 30 + 6 * 5 * 5
    assert flops("relora", 2, 3, 1, 5) == 4 * 30 + 2 * 6 + (2 * 30 + 4 * 6)  # merged, by the gradient of W
    assert flops("relora", 10, 10, 1, 6) == 4 * 600 + 2 * 100 + 4 * 6 * 20  # merged, by thin products
    assert flops("relora", 20, 30, 1, 5) == flops("peft", 20, 30, 1, 5) == 4 * 3000 + 6 * 5 * 50  # apart


def test_utilisation_of_a_step():
    given = step.parse(DEMO)
    full, relora = sides.Side("full"), sides.Side("relora", 4)
    run = sides.settings(full, given, {"size": "demo"}, "float32")
    total, _ = sizes.count_parameters("demo", vocab_size=300)
    entries = total - 300 * 48 - 5 * 48  # without embeddings and norms
    flops = 6 * entries * 8 + 12 * 2 * 8 * 8 * 48
    assert roofline.step_flops(full, run, 300) == flops
    assert roofline.optimizer_bytes(full, run, 300) == 32 * total
    rates = roofline.Rates(flops=flops, bytes=64 * total)  # a second of products, half a second of bytes
    assert roofline.utilisation(full, run, 300, 4.0, rates) == pytest.approx((0.25, 0.375))
    used, of_least = roofline.utilisation(relora, run, 300, 4.0, rates)
    assert used == 0.25
    assert of_least != 0.375


def test_rates_are_those_of_the_median():
    times = {"product": [1.0, 2.0, 9.0], "copy": [0.5, 0.1, 0.7]}
    assert roofline.rates(times, "cpu") == roofline.Rates(flops=2 * 16**3 / 2.0, bytes=8 * 2**10 / 0.5)
    assert step.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


def test_the_loop_is_timed_beside_a_bare_one(tmp_path):
    given = step.parse(["--only", "loop", "--repeats", "1"])
    table, (row,) = step.rows(given, [], tmp_path)
    assert not table
    assert (row["ours"], row["peer"], row["limit"], row["unit"]) == ("trainer", "bare loop", ANY_TIME, "ms")
    assert math.isfinite(row["found"])


def test_what_a_gpu_does_is_no_cpu_time(capsys):
    assert step.parse(["--device", "cuda"]).clock == "wall"
    with pytest.raises(SystemExit):
        step.parse(["--device", "cuda", "--clock", "cpu"])
    assert "--clock" in capsys.readouterr().err


def test_the_textbooks_dropout_is_drawn_in_training_alone():
    linear = torch.nn.Linear(64, 64, bias=False)
    layer = peers.Unmerged(linear, 4, peers.DROPOUT["textbook+dropout"])
    torch.nn.init.ones_(layer.lora_A)
    torch.nn.init.ones_(layer.lora_B)
    x = torch.linspace(1, 2, 64)[None]  # no two masks leave the same sum
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), linear(x) + 4 * x.sum())


def test_peers_are_plain_and_begin_with_our_weights(tmp_path):
    given = step.parse(DEMO)
    run = sides.settings(sides.Side("full"), given, {"size": "demo"}, "float32")
    tokens = training.random_text(tmp_path, 300, 100)
    ours, peer = (sides.begin(sides.Side(method), run, tokens).model for method in ("full", "transformers"))
    assert not any(type(module).__module__.startswith("relora_lab") for module in peer.modules())
    theirs = peer.state_dict()
    assert theirs.keys() == ours.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_compiled_side_is_compiled_where_our_loss_calls_it(tmp_path):
    given = step.parse([*DEMO, "--compile"])
    tokens = training.random_text(tmp_path, 300, 100)
    for side in sides.of_case("step", given):
        if side.method in sides.OURS:
            run = sides.settings(side, given, {"size": "demo"}, "float32")
            model = sides.begin(side, run, tokens).model
            assert (model.base_model._compiled_call_impl is not None) == side.compiled
            assert bool(lowrank.low_rank_layers(model)) == (side.rank is not None)
    names = [str(side) for side in sides.of_case("step", given)]
    assert names == [*SIDES, "full compiled", "relora 4 compiled"]


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(monkeypatch):
    monkeypatch.undo()
    options = ["--size", "9M", "--sequence", "64", "--micro-batch", "4", "--vocabulary", "8000"]
    full, relora = (
        step.peak_alone(side, "float32", options) for side in (sides.Side("full"), sides.Side("relora", 8))
    )
    assert 2**24 < relora < full < 2**29
