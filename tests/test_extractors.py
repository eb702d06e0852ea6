"""Extractors return their own legal programs within their budgets, and group moves find what single sites cannot."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from xrlflow import zoo
from xrlflow.cost.base import Cost, bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import GraphBuilder, TensorType, attributes
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import IllegalSelection, SearchSpace, Selection
from xrlflow.errors import UserError
from xrlflow.lowering import load
from xrlflow.policy import climb
from xrlflow.policy.base import Budget, Meter, extractor, names
from xrlflow.policy.leaps import Leaps
from xrlflow.policy.orbits import components, orbits
from xrlflow.policy.part import alike
from xrlflow.policy.problem import Problem, Reduction
from xrlflow.policy.puzzles import SpaceBuilder, puzzle
from xrlflow.policy.state import State
from xrlflow.policy.substitution import Substitutions
from xrlflow.policy.tree import tree_costs

CLASSICAL = tuple(n for n in names() if n != "rl")


def random_space(seed, classes=12, extra=14):
    """Classes in layers with random e-nodes, some of which read classes above them (cycles), and prices that tie."""
    rng = np.random.default_rng(seed)
    kids = [[] for _ in range(classes)]
    for c in range(1, classes):
        kids[c].append(tuple(rng.integers(0, c, size=rng.integers(1, 3)).tolist()))
    kids[0].append(())
    for _ in range(extra):
        c = int(rng.integers(1, classes))
        upto = classes if rng.random() < 0.4 else c
        new = tuple(rng.integers(0, upto, size=rng.integers(1, 4)).tolist())
        if new not in kids[c]:
            kids[c].append(new)
    weights = set(rng.choice(np.arange(1, classes - 1), size=2, replace=False).tolist())
    for c in weights:
        kids[c] = [()]
    nodes = [(c, k) for c in range(classes) for k in kids[c]]
    ops = tuple("Input" if c == 0 else "Weight" if c in weights else "Add" for c, _ in nodes)
    original = np.array([next(i for i, n in enumerate(nodes) if n[0] == c) for c in range(classes)], dtype=np.int32)
    const = np.array([c in weights for c in range(classes)])
    types = tuple(TensorType((1000 * (c + 1),), "float32") for c in range(classes))
    g = GraphBuilder()
    g.input("x", types[0])
    picked = Selection(original)
    space = SearchSpace(
        ops=ops,
        attributes=tuple(attributes(n=i) for i in range(len(nodes))),
        node_class=np.array([c for c, _ in nodes], dtype=np.int32),
        child_ptr=np.cumsum([0, *(len(k) for _, k in nodes)]).astype(np.int32),
        children=np.array([k for _, ks in nodes for k in ks], dtype=np.int32),
        types=types,
        const=const,
        roots=np.array([classes - 1], dtype=np.int32),
        rules=tuple(() for _ in nodes),
        names=tuple(() for _ in range(classes)),
        original=picked,
        baseline=original,
        graph=g.build({"y": 0}),
    )
    space = replace(space, original=space.selection(original))
    prices = np.where([op == "Add" for op in ops], rng.integers(1, 5, size=len(nodes)).astype(float), 0.0)
    return space, Cost(space, prices, "test", growth_limit=float(rng.choice([1.0, 1.5, 10.0])))


def optimum(space, cost):
    """The cheapest legal selection's cost, by trying all."""
    best = np.inf
    for choice in product(*(space.nodes_of(c) for c in range(space.n_classes))):
        try:
            selection = space.selection(np.array(choice))
        except IllegalSelection:
            continue
        if cost.legal(selection):
            best = min(best, cost.total(selection))
    return best


def siblings(n, rows=8, width=256, out=64):
    """One input, n matmuls of it merged as a whole, each followed by a Tanh; all results are outputs."""
    g = GraphBuilder()
    x = g.input("x", TensorType((rows, width), "float32"))
    ws = [g.weight(np.full((width, out), float(k), dtype=np.float32)) for k in range(n)]
    ms = [g.op("MatMul", x, w) for w in ws]
    graph = g.build({f"y{k}": g.op("Tanh", m) for k, m in enumerate(ms)})
    b = SpaceBuilder(graph)
    weights = b.op("merge", "Concat", *(b.of[w] for w in ws), axis=1)
    split = b.op("merge", "Split", b.op("merge", "MatMul", b.of[x], weights), axis=1, sizes=[out] * n)
    for k, m in enumerate(ms):
        b.also(b.of[m], "merge", "Get", split, index=k)
    return b.build()


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_random_walks_keep_cost_bytes_and_acyclicity(seed, group):
    """What `State` keeps incrementally equals what the space says from scratch, after any moves."""
    if seed % 2:
        space, cost = random_space(seed)
    else:
        space = puzzle(np.random.default_rng(seed), 4)
        cost = bind(roofline("a100"), space, 1.3)
    rng = np.random.default_rng(seed)
    state = State(Substitutions(space, cost, group))
    assert state.selection() == space.original
    moved = 0
    for _ in range(150):
        a = int(rng.integers(len(state.rules)))
        move = state.evaluate(a)
        before = (state.cost, state.bytes, state.key, state.selection())
        assert state.apply(a) == (move is not None) or state.key == before[2]
        if move is None:
            assert state.selection() == before[3]
            continue
        moved += 1
        selection = state.selection()  # raises on a cycle
        assert state.cost == pytest.approx(cost.total(selection), rel=1e-9)
        assert state.bytes == pytest.approx(space.weight_bytes(selection))
        assert state.cost == pytest.approx(before[0] + move.cost, rel=1e-9)
        assert state.bytes == pytest.approx(before[1] + move.bytes)
        assert state.key == before[2] ^ move.key
    assert moved > 10


@pytest.mark.parametrize("seed", range(8))
def test_remembered_moves_equal_fresh_ones(seed):
    """After any moves and returns to snapshots, remembered moves are what a new state would work out."""
    space, cost = (
        random_space(seed, classes=16, extra=24) if seed % 2 else (puzzle(np.random.default_rng(seed), 4), None)
    )
    cost = cost or bind(roofline("h200"), space, 1.5)
    rng = np.random.default_rng(seed)
    rules = Substitutions(space, cost)
    state = State(rules)
    kept = [state.snapshot()]
    for step in range(40):
        legal = np.flatnonzero(state.legal)
        if step % 7 == 6:
            state.restore(kept[int(rng.integers(len(kept)))])
        elif legal.size:
            state.apply(int(rng.choice(legal)))
            kept.append(state.snapshot())
        state.refresh()
        fresh = State(rules)  # nothing is remembered yet
        fresh.restore(state.snapshot())
        assert fresh.stale
        fresh.refresh()
        assert np.array_equal(state.closable, fresh.closable)
        on = state.closable
        assert np.allclose(state.delta[on], fresh.delta[on], atol=1e-9)
        assert np.allclose(state.growth[on], fresh.growth[on])


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("seed", range(6))
def test_every_result_is_legal_and_priced_right(name, seed):
    space, cost = random_space(seed)
    found = extractor(name).extract(space, cost, Budget(steps=3000), np.random.default_rng(seed))
    assert found.extractor == name
    assert found.cost == pytest.approx(cost.total(found.selection))
    assert cost.legal(found.selection)
    assert space.selection(found.selection.choice) == found.selection
    assert found.trace.points[-1][2] == pytest.approx(found.cost)
    if name not in ("tree", "dag"):
        assert found.cost <= cost.total(space.original) + 1e-9
    best = optimum(space, cost)
    assert found.cost >= best - 1e-9
    if name in ("ilp", "saturation"):
        assert found.cost == pytest.approx(best)
        assert found.extras["lower_bound"] <= best + 1e-9


def test_exact_extraction_keeps_the_limit_on_weights(monkeypatch):
    """The optimum within the limit is found and proved, whether or not the limit binds."""
    monkeypatch.setattr("xrlflow.cost.base.WEIGHT_SLACK", 0.0)
    for seed in range(40):
        space, cost = random_space(seed)
        cost = replace(cost, growth_limit=1.0)
        found = extractor("ilp").extract(space, cost, Budget(), np.random.default_rng(0))
        assert found.cost == pytest.approx(optimum(space, cost)), seed
        assert found.extras["proof"] == "optimal", seed


def test_where_the_limit_on_weights_binds():
    """On spaces with folds that grow the weights: proved, never dearer than climbing, dearer than without a limit."""
    binding = 0
    for seed in range(12):
        space = puzzle(np.random.default_rng(seed), 4)
        tight, loose = (bind(roofline("a100"), space, growth) for growth in (1.0, 100.0))
        exact, free = (extractor("ilp").extract(space, c, Budget(), np.random.default_rng(0)) for c in (tight, loose))
        climbed = extractor("climb").extract(space, tight, Budget(steps=2000), np.random.default_rng(0))
        assert exact.extras["proof"] == free.extras["proof"] == "optimal"
        assert tight.legal(exact.selection)
        assert exact.cost <= climbed.cost * (1 + 1e-9)
        binding += free.cost < exact.cost * (1 - 1e-9)
    assert binding >= 3


def test_climb_finds_the_optimum_of_small_spaces():
    hits = 0
    for seed in range(12):
        space, cost = random_space(seed)
        found = extractor("climb").extract(space, cost, Budget(steps=5000), np.random.default_rng(0))
        hits += found.cost <= optimum(space, cost) + 1e-9
    assert hits >= 11


@pytest.mark.parametrize("n", [3, 4, 6])
def test_all_users_of_a_merge_move_at_once(n):
    """One group move merges n siblings; one atomic move alone raises the cost and the weights."""
    space = siblings(n)
    cost = bind(roofline("a100"), space, max_weight_growth=10.0)
    state = State(Substitutions(space, cost, group=True))
    merged = [a for a in np.flatnonzero(state.legal) if state.delta[a] < 0]
    assert merged
    state.apply(int(merged[0]))
    graph = space.to_graph(state.selection())
    assert graph.count().get("MatMul") == 1
    assert state.cost < state.rules.original_cost
    atomic = State(Substitutions(space, cost, group=False))
    assert atomic.legal.any()
    assert (atomic.delta[atomic.closable] > 0).all()


def test_greedy_single_sites_miss_a_merge_of_five_that_group_moves_find():
    space = siblings(5)
    cost = bind(roofline("a100"), space, max_weight_growth=10.0)
    run = lambda name, **o: (
        extractor(name, **o).extract(space, cost, Budget(steps=10_000), np.random.default_rng(0)).cost
    )
    original = cost.total(space.original)
    assert run("greedy", alpha=1.05) == pytest.approx(original)
    assert run("greedy-group") < 0.8 * original
    assert run("climb") == pytest.approx(run("greedy-group"))
    assert run("greedy", alpha=2.0) == pytest.approx(run("greedy-group")), (
        "with enough tolerance single sites get there"
    )


def test_tree_extraction_may_be_dearer_than_the_original_and_is_returned():
    """Trees count a shared operand once per reader: here the shared one looks dear, so two copies are chosen."""
    g = GraphBuilder()
    x = g.input("x", TensorType((64, 64), "float32"))
    s = g.op("Exp", x)
    a, b_ = g.op("Neg", s), g.op("Abs", s)
    graph = g.build({"a": a, "b": b_})
    b = SpaceBuilder(graph)
    b.also(b.of[a], "own", "Sqrt", b.of[x])  # not semantics, only structure, is at stake
    b.also(b.of[b_], "own", "Tanh", b.of[x])
    space = b.build()
    price = {"Exp": 4.0, "Neg": 1.0, "Abs": 1.0, "Sqrt": 4.0, "Tanh": 4.0}
    cost = Cost(space, np.array([price.get(op, 0.0) for op in space.ops]), "test")
    assert cost.total(space.original) == 6.0
    assert extractor("tree").extract(space, cost, Budget(), np.random.default_rng(0)).cost == 8.0
    assert extractor("climb").extract(space, cost, Budget(steps=100), np.random.default_rng(0)).cost == 6.0


def test_tree_costs_are_the_bottom_up_fixpoint():
    for seed in range(10):
        space, cost = random_space(seed)
        found, _ = tree_costs(space, cost.prices.tolist())
        best = [np.inf] * space.n_classes
        for _ in range(space.n_classes + 1):
            for i, k in enumerate(space.child_lists):
                c = space.node_class[i]
                best[c] = min(best[c], cost.prices[i] + sum(best[x] for x in k))
        assert np.allclose(found, best)


def test_tree_repairs_weight_growth():
    space = puzzle(np.random.default_rng(17), 8)
    free = bind(roofline("a100"), space, 100.0)
    tight = bind(roofline("a100"), space, 1.0)
    loose = extractor("tree").extract(space, free, Budget(), np.random.default_rng(0))
    repaired = extractor("tree").extract(space, tight, Budget(), np.random.default_rng(0))
    assert not tight.legal(loose.selection), "the case is void unless the unrepaired result is illegal"
    assert tight.legal(repaired.selection) and repaired.extras["repaired"] > 0


@pytest.mark.parametrize("name", ["climb", "greedy", "greedy-group", "random"])
def test_budgets_are_kept(name):
    space = puzzle(np.random.default_rng(5), 30)
    cost = bind(roofline("a100"), space)
    for steps in (1, 50, 700):
        found = extractor(name).extract(space, cost, Budget(steps=steps), np.random.default_rng(0))
        assert all(n <= steps + 64 for n, _, _ in found.trace.points)
        assert cost.legal(found.selection)
    found = extractor(name).extract(space, cost, Budget(seconds=0.2), np.random.default_rng(0))
    assert found.trace.points[-1][1] < 0.4


@pytest.mark.parametrize("name", CLASSICAL)
def test_same_seed_same_program(name):
    space = puzzle(np.random.default_rng(7), 6)
    cost = bind(roofline("epyc-1t"), space)
    a, b = (extractor(name).extract(space, cost, Budget(steps=2000), np.random.default_rng(4)) for _ in range(2))
    assert a.selection == b.selection
    assert [(n, c) for n, _, c in a.trace.points] == [(n, c) for n, _, c in b.trace.points]


def test_isomorphic_sites_are_one_decision():
    """Equal layers share colours: an orbit action changes all of them, and what it saves is the sum of the sites."""
    g = GraphBuilder()
    x = g.input("x", TensorType((8, 64), "float32"))
    folds = []
    for k in range(12):
        w1 = g.weight(np.full((64, 16), k + 1.0, dtype=np.float32))
        w2 = g.weight(np.full((16, 64), k + 0.5, dtype=np.float32))
        y = g.op("MatMul", g.op("MatMul", x, w1), w2)
        folds.append((y, x, w1, w2))
        x = g.op("Relu", y)
    b = SpaceBuilder(g.build({"y": x}))
    for y, source, w1, w2 in folds:
        b.also(b.of[y], "fold", "MatMul", b.of[source], b.op("fold", "MatMul", b.of[w1], b.of[w2]))
    space = b.build()
    cost = bind(roofline("a100"), space, 3.0)
    state = State(Substitutions(space, cost))
    state.refresh()
    widest = max(np.flatnonzero(state.delta < 0), key=lambda a: len(state.rules.actions[a].nodes))
    nodes = state.rules.actions[widest].nodes
    assert len(nodes) >= 6, "all but the layers near the ends look alike"
    assert {space.ops[i] for i in nodes} == {"MatMul"}
    singles = [a for a, action in enumerate(state.rules.actions) if len(action.nodes) == 1 and action.nodes[0] in nodes]
    together = [a for a, action in enumerate(state.rules.actions) if len(action.nodes) > 1]
    assert state.delta[widest] == pytest.approx(sum(state.delta[singles]))
    for a in together:
        guess, changes = state.delta[a], state.closable[a]
        move = state.evaluate(a)
        assert (move is not None) == changes
        assert move is None or guess == pytest.approx(move.cost)
    assert state.apply(int(widest))
    assert all(state.choice[space.node_class[i]] == i for i in nodes)


def test_orbits_tell_attributes_apart():
    g = GraphBuilder()
    x = g.input("x", TensorType((1, 8, 16, 16), "float32"))
    left, right = g.op("Transpose", x, perm=(0, 1, 2, 3)), g.op("Transpose", x, perm=(0, 1, 3, 2))
    space = SpaceBuilder(g.build({"a": g.op("Relu", left), "b": g.op("Relu", right)})).build()
    assert orbits(space, range(space.n_nodes)) == []


def test_components_are_the_cycles():
    assert components(5, [[1], [2], [0], [0], [4]]) == [0, 0, 0, -1, -1]


def test_illegal_growth_is_masked():
    for seed in range(5):
        space = puzzle(np.random.default_rng(seed), 6)
        cost = bind(roofline("a100"), space, 1.01)
        state = State(Substitutions(space, cost))
        rng = np.random.default_rng(seed)
        for _ in range(30):
            legal = np.flatnonzero(state.legal)
            if not legal.size:
                break
            state.apply(int(rng.choice(legal)))
            assert cost.legal(state.selection())


def test_an_operator_that_cannot_run_is_left_or_never_chosen():
    space = siblings(3)
    cost = bind(roofline("a100"), space, 10.0)
    merged = next(i for i, op in enumerate(space.ops) if op == "Split")
    prices = cost.prices.copy()
    prices[merged] = np.inf
    barred = Cost(space, prices, "test", 10.0)
    for name in CLASSICAL:
        found = extractor(name).extract(space, barred, Budget(steps=500), np.random.default_rng(0))
        assert np.isfinite(found.cost)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="no extractor is called 'best'"):
        extractor("best")
    assert "rl" in names()


@pytest.fixture(scope="module")
def layers():
    """A decoder of equal layers, none of which is solved within a few steps."""
    space = saturate(load(zoo.build("deep-decoder", operators=300)))
    return space, bind(roofline("epyc-1t"), space)


def test_parts_that_are_alike_are_searched_as_one(layers):
    space, cost = layers
    found = extractor("ilp").extract(space, cost, Budget(steps=60), np.random.default_rng(0))
    assert found.extras["proof"] != "optimal"
    problem = Problem(space, cost)
    parts = Reduction(problem).parts
    groups = [[parts[n] for n in group] for group in alike(parts, problem.price)]
    assert max(map(len, groups)) >= 4
    chosen = {c: int(i) for c, i in enumerate(found.selection.choice) if i >= 0}
    for group in groups:
        sums = {round(sum(problem.price[chosen[c]] for c in part.classes if c in chosen), 9) for part in group}
        assert len(sums) == 1, "layers that are alike have fared differently"


def test_where_moves_are_many_layers_move_together(layers, monkeypatch):
    space, cost = layers
    costs = {}
    for many in (10, 1 << 30):
        monkeypatch.setattr(climb, "MANY", many)
        found = extractor("climb", leaps=0).extract(space, cost, Budget(steps=400), np.random.default_rng(0))
        assert cost.legal(found.selection)
        assert found.cost == pytest.approx(cost.total(found.selection))
        costs[many] = found.cost
    assert costs[10] < 0.9 * costs[1 << 30]


def test_layers_that_are_alike_are_leapt_in_before_single_moves(layers, monkeypatch):
    space, cost = layers
    monkeypatch.setattr(climb, "MANY", 10)
    costs = {}
    for repeated in (2, 1 << 30):
        monkeypatch.setattr(climb, "REPEATED", repeated)
        found = [
            extractor("climb").extract(space, cost, Budget(steps=2000), np.random.default_rng(0)) for _ in range(2)
        ]
        assert found[0].selection == found[1].selection
        assert cost.legal(found[0].selection)
        costs[repeated] = found[0].cost
    assert costs[2] != costs[1 << 30], "they were not leapt in first"


def test_leaps_change_all_layers_that_are_alike(layers):
    space, cost = layers
    state = State(Substitutions(space, cost))
    leaps, meter = Leaps(state, np.random.default_rng(0), 0.0), Meter(Budget(steps=10_000))
    layer = max(range(len(leaps.alike)), key=lambda n: len(leaps.alike[n]))
    leaps.odds[:] = 0
    leaps.odds[layer] = 1.0
    landed = next(s for s in (leaps.landed(meter) for _ in range(20)) if s is not None and s.cost < state.cost)
    state.restore(landed)
    chosen = {c: i for c, i in enumerate(state.choice) if state.refs[c]}
    prices = {
        round(sum(state.rules.price[chosen[c]] for c in part.classes if c in chosen), 9) for part in leaps.alike[layer]
    }
    assert len(prices) == 1


def test_climbing_takes_what_the_reduction_found_superfluous():
    """Nothing is left that is replaced at once by an e-node that it can do without: classes outside all parts too."""
    sizes = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96, "tokens": 16, "vocab": 100}
    space = saturate(load(zoo.build("llama", **sizes)), seconds=20.0)
    cost = bind(roofline("a100"), space)
    found = extractor("climb").extract(space, cost, Budget(steps=3000), np.random.default_rng(0))
    problem = Problem(space, cost)
    reduction = Reduction(problem)
    chosen = {c: int(i) for c, i in enumerate(found.selection.choice) if i >= 0}
    translated = problem.selection({**chosen, **reduction.decided, **reduction.translated(chosen)})
    assert cost.total(translated) == pytest.approx(found.cost)


def test_saturation_stops_as_soon_as_the_optimum_is_proved():
    space = saturate(load(zoo.build("inception-block")), seconds=20.0)
    cost = bind(roofline("a100"), space)
    found = extractor("saturation").extract(space, cost, Budget(steps=20_000), np.random.default_rng(0))
    assert found.extras["proof"] == "optimal"
    assert found.trace.evaluations <= 2000
