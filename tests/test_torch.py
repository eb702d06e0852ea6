"""torch modules: optimised by hand and through `torch.compile`, and run by torch itself where they cannot be taken."""

import warnings

import pytest
import torch
from torch import nn

import xrlflow
from xrlflow.errors import UserError
from xrlflow.torch_module import EagerWarning, NotTaken, OptimizedModule, backend, optimized

QUICK = {"method": "saturation", "target": "roofline:epyc-1t", "max_steps": 100, "keep": True}
"""Nothing is measured, and what is found is kept: ONNX Runtime runs it."""


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(32, 96), nn.Linear(32, 32), causal

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 10, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.out(y.transpose(1, 2).reshape(2, 10, 32))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((16, 24), (16, 24), (24, 16)))

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b.running_mean.uniform_(-1, 1)
        self.b.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return torch.relu(x + self.b(self.a(x)))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(20, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, tokens):
        x = self.norm(self.words(tokens))
        return {"logits": self.head(x.mean(1)), "states": x}


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.Softmax(-1)), (3, 8)),
    "gated": (Gated, (2, 5, 16)),
    "residual": (lambda: nn.Sequential(Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (2, 4, 9, 9)),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 8, 1)),
        (1, 4, 8, 8),
    ),
    "attention": (lambda: Attention(False), (2, 10, 32)),
    "causal": (lambda: Attention(True), (2, 10, 32)),
    "encoder": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (2, 10, 32)),
    "embedded": (Embedded, "tokens"),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    make, shape = MODELS[request.param]
    inputs = torch.randint(0, 20, (2, 7)) if shape == "tokens" else torch.randn(shape)
    return make().eval(), inputs


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_module_is_replaced_by_one_that_computes_the_same(model):
    module, x = model
    found = xrlflow.optimize(module, (x,), **QUICK)
    assert isinstance(found, OptimizedModule)
    assert found.result.verification is None or found.result.verification.passed
    assert set(found.report) == {"max_abs", "ms", "original_ms"}
    with torch.no_grad():
        same(found(x), module(x))
        if x.is_floating_point():
            same(found(2 * x), module(2 * x))


def test_torch_compile(model):
    module, x = model
    torch.compiler.reset()
    compiled = torch.compile(module, backend="xrlflow", options=QUICK)
    torch.backends.mha.set_fastpath_enabled(False)  # of a whole encoder layer it makes one operator
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", EagerWarning)
            same(compiled(x), module(x))
            same(compiled(x), module(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_tvm_runs_it_too():
    module, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(3, 8)
    found = optimized(module, (x,), target="llvm", method="original", budget=10.0, keep=True)
    with torch.no_grad():
        same(found(x), module(x))
        y = found(x)
    assert y.dtype == torch.float32


def test_parameters_that_change_are_seen():
    module, x = nn.Linear(4, 4).eval(), torch.randn(2, 4)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, options=QUICK)
    with torch.no_grad():
        same(compiled(x), module(x))
        module.weight.mul_(2.0)
        same(compiled(x), module(x))


def warned(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in told if issubclass(w.category, EagerWarning)]


def test_training_is_left_to_torch():
    module, x = nn.Linear(4, 4), torch.randn(2, 4)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, options=QUICK)
    y, told = warned(lambda: compiled(x))
    y.sum().backward()
    assert module.weight.grad is not None
    assert len(told) == 1
    assert "gradients" in told[0]


@pytest.mark.parametrize(
    ("module", "x", "said"),
    [
        (nn.LSTM(4, 4), torch.randn(3, 2, 4), "."),
        (nn.Sequential(nn.Linear(4, 4), nn.LogSoftmax(-1)), torch.randn(2, 4), "log_softmax"),
    ],
)
def test_what_cannot_be_taken_is_run_by_torch_with_one_warning(module, x, said):
    module.eval()
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, options=QUICK)
    with torch.no_grad():
        y, told = warned(lambda: compiled(x))
        same(y, module(x))
        again, more = warned(lambda: compiled(x))
        same(again, y)
    if told:  # what torch itself leaves out of the graph is none of ours
        assert said in told[0] or said == "."
    assert not more


def test_what_is_slower_is_not_kept(monkeypatch):
    module, x = nn.Linear(4, 4).eval(), torch.randn(2, 4)
    monkeypatch.setattr("xrlflow.torch_module._timed", lambda *_: {"original_ms": 1.0, "ms": 2.0})
    with pytest.raises(NotTaken, match="torch runs it in 1 ms"):
        optimized(module, (x,), **(QUICK | {"keep": False}))


def test_what_computes_something_else_is_not_kept(monkeypatch):
    module, x = nn.Linear(4, 4).eval(), torch.randn(2, 4)
    real = xrlflow.torch_module._by_runtime

    def wrong(relax, options):
        made = real(relax, options)
        return type(made)(lambda *xs: [1.01 * y for y in made.run(*xs)], made.result)

    monkeypatch.setattr("xrlflow.torch_module._by_runtime", wrong)
    with pytest.raises(NotTaken, match="outputs differ"):
        optimized(module, (x,), **QUICK)


def test_wrong_options_and_inputs_are_named():
    module, x = nn.Linear(4, 4).eval(), torch.randn(2, 4)
    with pytest.raises(NotTaken, match="no tensors"):
        optimized(module, (3,), **QUICK)
    with pytest.raises(UserError, match="unknown method"):
        optimized(module, (x,), **(QUICK | {"method": "magic"}))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(1))

    def forward(self, x):
        self.n.add_(1)
        return x * self.n


class InPlace(nn.Module):
    def forward(self, x):
        x.relu_()
        return x + 1


class Masked(nn.Module):
    def forward(self, x):
        return x.masked_fill(x > 0.5, float("-inf"))


@pytest.mark.parametrize("module", [Counting(), InPlace()])
def test_what_changes_things_in_place_is_left_to_torch_and_changes_them_once(module):
    x = torch.tensor([[-1.0, 2.0]])
    with pytest.raises(NotTaken, match="in place"):
        optimized(module, (x.clone(),), **QUICK)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, options=QUICK)
    expected = InPlace()(x.clone()) if isinstance(module, InPlace) else x
    given = x.clone()
    with torch.no_grad():
        y, _ = warned(lambda: compiled(given))
    same(y, expected)
    if isinstance(module, Counting):
        assert module.n == 1
    else:
        same(given, torch.tensor([[0.0, 2.0]]))


def test_modules_keep_their_modes():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module.train()
    module[1].eval()
    mean = module[1].running_mean.clone()
    optimized(module, (torch.randn(2, 4),), **QUICK)
    assert module.training
    assert module[0].training
    assert not module[1].training
    assert torch.equal(module[1].running_mean, mean)


def test_infinities_have_to_be_the_same():
    from xrlflow.torch_module import _compared

    a = torch.tensor([[1.0, -torch.inf], [2.0, 3.0]])
    assert _compared([a], [a.clone()]) == 0
    for other in ([[100.0, -torch.inf], [2.0, 3.0]], [[1.0, torch.inf], [2.0, 3.0]], [[1.0, 5.0], [2.0, 3.0]],
                  [[1.0, -torch.inf], [torch.nan, 3.0]]):  # fmt: skip
        with pytest.raises(NotTaken, match="differ"):
            _compared([a], [torch.tensor(other)])
    found = optimized(Masked().eval(), (torch.rand(4, 4),), **QUICK)
    x = torch.rand(4, 4)
    same(found(x), Masked()(x))


def test_inputs_need_not_be_dense_or_aligned_and_may_be_called_anything():
    class Names(nn.Module):
        def forward(self, a, lv, unused):
            return torch.relu(lv) @ a

    a, lv = torch.randn(5, 4), torch.randn(3, 5)
    for target in ("roofline:epyc-1t", "llvm"):
        options = QUICK | ({"target": "llvm", "method": "original"} if target == "llvm" else {})
        found = optimized(Names().eval(), (a, lv, torch.zeros(1)), **options)
        base = torch.randn(61)
        odd, turned = base[1:21].view(5, 4), torch.randn(5, 3).T
        same(found(odd, turned, torch.zeros(1)), torch.relu(turned) @ odd)


def test_new_storage_of_a_parameter_is_seen():
    module, x = nn.Linear(4, 4).eval(), torch.randn(2, 4)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, options=QUICK)
    with torch.no_grad():
        compiled(x)
        module.weight.data = torch.zeros(4, 4)
        same(compiled(x), module(x))


def test_what_the_runtime_cannot_run_is_left_to_torch():
    module, x = nn.Tanh(), torch.randn(2, 4, dtype=torch.bfloat16)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, options=QUICK)
    with torch.no_grad():
        y, told = warned(lambda: compiled(x))
    same(y, module(x))
    assert len(told) == 1
