"""The verdict: its statistics on synthetic samplers, and real pairs of small models."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from xrlflow.cost.confirm import confirm
from xrlflow.cost.database import Database
from xrlflow.cost.sides import Sides
from xrlflow.cost.target import Target
from xrlflow.cost.verdict import MARGIN, decide, median_interval, rounds_of, settled, wealth
from xrlflow.cost.worker import WorkerError
from xrlflow.errors import UserError

ORT = Target("onnxruntime")


def sampled(rng, speedup, rounds=30, blocks=3, controls=2, noise=0.03, process=0.004, spikes=0.05):
    """Ratios as a shared machine gives them: lasting luck of each process, drift, jitter, and spikes."""

    def block(gain):
        luck = rng.normal(0, process, 2)
        drift = np.cumsum(rng.normal(0, 0.01, rounds))
        sides = []
        for k in range(2):
            t = luck[k] + drift + rng.normal(0, noise, rounds)
            sides.append(np.exp(t + (rng.random(rounds) < spikes) * rng.exponential(0.5, rounds)))
        return gain * sides[0] / sides[1]

    return [block(speedup) for _ in range(blocks)], [block(1.0) for _ in range(controls)]


def looked(rng, speedup, **noise):
    """The verdict of a comparison that stops as soon as it is clear, and how many blocks it took."""
    blocks, controls = sampled(rng, speedup, blocks=6, controls=6, **noise)
    for n in range(2, 7):
        if settled(blocks[:n], controls[:n]):
            break
    return decide(blocks[:n], controls[:n])[3], n


@pytest.mark.parametrize(("noise", "process"), [(0.005, 0.002), (0.03, 0.004), (0.1, 0.01), (0.03, 0.02)])
def test_equal_models_are_called_faster_in_at_most_one_percent(noise, process):
    rng = np.random.default_rng(1)
    for rounds, blocks, controls in ((30, 3, 2), (12, 2, 1)):
        sizes = {"rounds": rounds, "blocks": blocks, "controls": controls}
        runs = [decide(*sampled(rng, 1.0, noise=noise, process=process, **sizes))[3] for _ in range(1500)]
        assert runs.count("faster") / len(runs) <= 0.01
        assert runs.count("slower") / len(runs) <= 0.01


@pytest.mark.parametrize(("speedup", "verdict"), [(1.05, "faster"), (1 / 1.05, "slower")])
def test_five_percent_are_found(speedup, verdict):
    rng = np.random.default_rng(2)
    runs = [looked(rng, speedup)[0] for _ in range(300)]
    assert runs.count(verdict) / len(runs) >= 0.92  # of 300, at noise worse than most machines'
    assert set(runs) <= {verdict, "tie"}


def test_a_gain_below_the_margin_is_a_tie():
    controls = [[1.0] * 30] * 2
    assert decide([[1 + MARGIN / 2] * 30] * 3, controls)[3] == "tie"
    assert decide([[1 + 2 * MARGIN] * 30] * 3, controls)[3] == "faster"
    assert decide([[1 + 1.5 * MARGIN] * 30] * 3, controls[:1])[3] == "tie"


def test_controls_that_differ_widen_the_margin():
    blocks = [[1.03] * 30] * 3
    assert decide(blocks, [[1.001] * 30])[3] == "faster"
    verdict, used = decide(blocks, [[1.001] * 30, [0.95] * 30])[3:]
    assert verdict == "tie" and used > 1 / 0.95 - 1
    # more of them tell more of luck, and the mean of more blocks has less of it
    assert decide(blocks * 2, [[1.001] * 30, [0.95] * 30] * 3)[4] < used
    assert decide(blocks, [[0.95] * 30])[4] > used


def test_blocks_that_disagree_are_a_tie():
    assert decide([[1.1] * 30, [1.1] * 30, [0.99] * 5])[3] == "tie"


def test_the_interval_of_the_median_covers_it():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(rng.exponential(1.0, 40))
        hits += low <= math.log(2) <= high
    assert hits / 2000 >= 0.985


def test_the_interval_holds_the_median_however_often_one_looks():
    """A fixed-sample interval of the same level, looked at as often, loses the median many times more often."""
    rng = np.random.default_rng(5)
    lost = 0
    for _ in range(300):
        values = rng.exponential(1.0, 200)
        intervals = (median_interval(values[:n]) for n in range(8, 201, 4))
        lost += any(not low <= math.log(2) <= high for low, high in intervals)
    assert lost / 300 <= 0.02


def test_the_gamblers_wealth_is_a_fair_game():
    """Its mean over all outcomes of n fair bets is 1, so it cannot be expected to grow."""
    for n in (1, 5, 20):
        mean = sum(math.comb(n, k) * 0.5**n * math.exp(wealth(k, n)) for k in range(n + 1))
        assert mean == pytest.approx(1.0)


def test_stopping_when_it_is_clear_calls_no_more_equal_models_faster():
    rng = np.random.default_rng(6)
    for noise in (
        {"noise": 0.005, "process": 0.002},
        {"noise": 0.03, "process": 0.004},
        {"noise": 0.05, "process": 0.02},
    ):
        runs = [looked(rng, 1.0, **noise)[0] for _ in range(1000)]
        assert runs.count("faster") / len(runs) <= 0.01
        assert runs.count("slower") / len(runs) <= 0.01


def test_a_clear_answer_takes_few_blocks_and_an_unclear_one_gets_more():
    rng = np.random.default_rng(7)
    clear = [looked(rng, 1.3) for _ in range(100)]
    assert all(verdict == "faster" and blocks == 2 for verdict, blocks in clear)
    unclear = [looked(rng, 1.03) for _ in range(100)]
    assert np.mean([blocks for _, blocks in unclear]) > 2.5


def test_too_few_values_have_no_interval():
    assert median_interval([1.0, 2.0, 3.0]) == (0.0, math.inf)
    assert decide([[2.0, 2.0]])[3] == "tie"


def test_rounds_alternate_in_random_order():
    calls = []
    first, second = lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0
    one, two = rounds_of(first, second, 50, np.random.default_rng(0))
    assert one == [1.0] * 50 and two == [2.0] * 50
    pairs = ["".join(calls[k : k + 2]) for k in range(0, 100, 2)]
    assert set(pairs) == {"ab", "ba"} and 10 < pairs.count("ab") < 40


def model(sizes, seed=0, name="g", extra=0):
    """A chain of products x · w₀ · w₁ …, with `extra` products that multiply again by the identity."""
    rng = np.random.default_rng(seed)
    weights = [(rng.standard_normal((a, b)) / 10).astype(np.float32) for a, b in pairwise(sizes)]
    weights += [np.eye(sizes[-1], dtype=np.float32)] * extra
    nodes = [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(len(weights))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, name, [value("v0", 1, [64, sizes[0]])], [value(f"v{len(weights)}", 1, [64, sizes[-1]])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_identical_files_are_a_tie_without_measuring(tmp_path):
    verdict = confirm(model([64, 64]), model([64, 64]), ORT, database=Database(tmp_path))
    assert verdict.verdict == "tie" and verdict.original_ms is None and "identical" in verdict.reason


def test_models_that_the_runtime_makes_equal_are_a_tie_without_measuring(tmp_path):
    other = model([64, 64], name="renamed")
    other.graph.node.insert(0, helper.make_node("Identity", ["v0"], ["again"]))
    other.graph.node[1].input[0] = "again"
    verdict = confirm(model([64, 64]), other, ORT, database=Database(tmp_path))
    assert verdict.verdict == "tie" and "same program" in verdict.reason


def test_a_candidate_with_a_third_of_the_work_is_faster(tmp_path):
    slow, fast = model([512, 512], extra=2), model([512, 512])
    verdict = confirm(slow, fast, ORT, 20, database=Database(tmp_path), blocks=2, controls=1)
    assert verdict.verdict == "faster" and verdict.speedup > 1.5 and verdict.judge
    assert verdict.ci_low <= verdict.speedup <= verdict.ci_high
    assert verdict.settings["pipeline"] == "ORT_ENABLE_ALL" and verdict.settings["rounds"] >= 12
    assert len(verdict.settings["controls"]) == 1


def test_a_candidate_that_cannot_run_is_a_tie_that_says_so(tmp_path):
    broken = model([64, 64])
    broken.graph.node[0].op_type = "NoSuchOperator"
    verdict = confirm(model([64, 64]), broken, ORT, database=Database(tmp_path))
    assert verdict.verdict == "tie" and "cannot run" in verdict.reason


def test_an_original_that_cannot_run_is_a_user_error(tmp_path):
    broken = model([64, 64])
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UserError, match="original"):
        confirm(broken, model([64, 64]), ORT, database=Database(tmp_path))


def test_a_computed_target_has_nothing_to_confirm():
    with pytest.raises(UserError, match="computed"):
        confirm(b"", b"", Target("roofline", "h200"))


def test_given_inputs_and_files_are_used(tmp_path):
    slow, fast = tmp_path / "slow.onnx", tmp_path / "fast.onnx"
    onnx.save(model([256, 256], extra=2), slow)
    onnx.save(model([256, 256]), fast)
    x = {"v0": np.ones((64, 256), np.float32)}
    verdict = confirm(fast, slow, ORT, 10, database=Database(tmp_path), blocks=1, controls=1, inputs=x)
    assert verdict.verdict != "faster" and verdict.speedup < 1
    assert None not in (verdict.original_ms, verdict.optimized_ms)


def test_untuned_tvm_is_not_a_judge_and_says_so(tmp_path):
    slow, fast = model([128, 128], extra=2), model([128, 128])
    verdict = confirm(slow, fast, Target("llvm"), 6, database=Database(tmp_path), trials=0, blocks=1, controls=1)
    assert not verdict.judge and "not a judge" in verdict.reason
    assert verdict.speedup > 1.5 and verdict.settings["tuned"] is False


def test_tuned_tvm_is_a_judge_and_both_sides_get_the_same_trials(tmp_path):
    slow, fast = model([128, 128], extra=2), model([128, 128])
    verdict = confirm(slow, fast, Target("llvm"), 10, database=Database(tmp_path), trials=4, blocks=1, controls=1)
    assert verdict.judge and verdict.speedup > 1.5
    tuning = verdict.settings["tuning"]
    assert tuning["original"]["tuned"] == tuning["original"]["kernels"] and verdict.settings["trials"] == 4


def told(judge=False, **more):
    return {"judge": judge, "complete": False, "tuned": 1, "kernels": 9, "ms": 1.0, **more}


def test_time_that_cannot_suffice_is_for_tuning(tmp_path, monkeypatch):
    turns, end = [], time.monotonic() + 8

    def tune(self, side, worker, limit):
        turns.append((side, limit))
        time.sleep(limit)
        return told()

    monkeypatch.setattr(Sides, "_tune", tune)
    verdict = confirm(model([64, 64], extra=2), model([64, 64]), Target("llvm"), 8, database=Database(tmp_path))
    assert time.monotonic() < end + 1.5
    assert verdict.verdict == "tie" and not verdict.judge and verdict.original_ms is None
    assert "1 of 9 (original) and 1 of 9 (candidate)" in str(verdict)
    assert [side for side, _ in turns] == ["original", "candidate"] * (len(turns) // 2) and len(turns) > 2
    assert turns[2][1] == turns[3][1]


def test_both_sides_are_compiled_after_both_were_tuned(tmp_path, monkeypatch):
    """Kernels that they share have been tuned for both then; and long runs leave less time for tuning."""
    for expected, most in ((0.0, 0.3), (500.0, 0.1)):
        steps = []

        def tune(self, side, worker, limit, steps=steps):
            steps.append((side, limit))
            return told(True)

        def broken(self, side, worker, steps=steps):
            steps.append((side, 0.0))
            raise WorkerError("no")

        monkeypatch.setattr(Sides, "_tune", tune)
        monkeypatch.setattr(Sides, "_compile", broken)
        pair, options = (model([64, 64], extra=2), model([64, 64])), {"database": Database(tmp_path)}
        verdict = confirm(*pair, Target("llvm"), 30, expected_ms=expected, **options)
        assert "cannot run" in verdict.reason
        assert [side for side, _ in steps[:2]] == ["original", "candidate"] and len(steps) == 4
        assert steps[0][1] <= most * 30


def test_models_that_lower_to_the_same_code_are_a_tie(tmp_path):
    other = model([64, 64], name="renamed")
    other.graph.node.insert(0, helper.make_node("Identity", ["v0"], ["again"]))
    other.graph.node[1].input[0] = "again"
    verdict = confirm(model([64, 64]), other, Target("llvm"), 20, database=Database(tmp_path), trials=0)
    assert verdict.verdict == "tie" and "same code" in verdict.reason


def test_an_empty_database_that_is_given_is_the_one_that_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "user"))
    database = Database(tmp_path / "given")
    more, less = model([64, 64], extra=1), model([64, 64])
    confirm(more, less, Target("llvm"), 4, database=database, trials=2, blocks=1, controls=0)
    assert not (tmp_path / "user").exists()
    assert list((tmp_path / "given").glob("schedules-*/*.json"))
