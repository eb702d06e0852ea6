"""The policy network: message passing over e-classes and e-nodes, a pointer over the legal actions, and a value.

Any number of e-nodes and actions, no padding, nothing depends on how they are numbered. A batch of graphs is one big
graph without edges between its parts; probabilities are a softmax over each part's actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import SimpleConv
from torch_geometric.utils import scatter, softmax

from .features import (
    CLASS_FEATURES,
    KINDS,
    MOVE_FEATURES,
    NODE_FEATURES,
    PROGRESS_FEATURES,
    TARGET_FEATURES,
    Layout,
    View,
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: these graphs are too small to be worth sharing out, and waiting costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


FEATURE_VERSION = 1
"""Raised whenever the meaning of a feature changes, so that an older policy file is refused instead of misread."""


@dataclass
class Batch:
    """Several states as one graph: the arrays of `Layout` and `View` with numbers shifted, and whose each row is.

    Only legal actions are kept: `legal` int64[L] are their numbers in their own graphs, `action_graph` int64[L] the
    graph, `site_action` and `site_node` int64[S] the rows of actions and e-nodes of all their sites. `chosen_of`
    int64[C] is the row of the e-node that a class uses (any of its own where it is dead; -1 for constants).
    """

    kinds: Tensor
    nodes: Tensor
    classes: Tensor
    member: Tensor
    operand: Tensor
    chosen: Tensor
    live: Tensor
    progress: Tensor
    node_graph: Tensor
    class_graph: Tensor
    moves: Tensor
    legal: Tensor
    action_graph: Tensor
    site_action: Tensor
    site_node: Tensor
    size: int


def collate(states: Sequence[tuple[Layout, View]]) -> Batch:
    """One batch of these states."""
    parts: dict[str, list[np.ndarray]] = {}

    def put(name: str, array: np.ndarray) -> None:
        parts.setdefault(name, []).append(array)

    n0 = c0 = a0 = 0
    for g, (fixed, seen) in enumerate(states):
        n, c = len(fixed.enode), len(fixed.eclass)
        legal = np.flatnonzero(seen.mask)
        row = np.full(len(seen.mask), -1, dtype=np.int64)
        row[legal] = np.arange(len(legal)) + a0
        put("kinds", fixed.kinds)
        put("nodes", fixed.nodes)
        put("classes", fixed.classes)
        put("member", fixed.member + c0)
        put("operand", fixed.operand + np.array([[c0], [n0]]))
        put("chosen", seen.chosen)
        put("live", seen.live)
        put("progress", np.concatenate([seen.progress, fixed.target]))
        put("node_graph", np.full(n, g, dtype=np.int64))
        put("class_graph", np.full(c, g, dtype=np.int64))
        put("moves", seen.moves[legal])
        put("legal", legal)
        put("action_graph", np.full(len(legal), g, dtype=np.int64))
        on = row[fixed.sites[0]] >= 0
        put("site_action", row[fixed.sites[0][on]])
        put("site_node", fixed.sites[1][on] + n0)
        n0, c0, a0 = n0 + n, c0 + c, a0 + len(legal)

    def joined(name: str) -> Tensor:
        if name == "progress":
            return torch.from_numpy(np.stack(parts[name]))
        return torch.from_numpy(np.concatenate(parts[name], axis=1 if name == "operand" else 0))

    return Batch(**{name: joined(name) for name in parts}, size=len(states))


class Exchange(nn.Module):
    r"""One round of messages between e-nodes and e-classes.

    .. math::
        h_n' &= h_n + W_1 \, \mathrm{ReLU}(W_2 h_n + W_3 h_{\mathrm{class}(n)}
            + \mathrm{mean}_{c \in \mathrm{operands}(n)} W_4 h_c)

        h_c' &= h_c + W_5 \, \mathrm{ReLU}(W_6 h_c + \mathrm{mean}_{n \in c} W_7 h_n' + W_8 h'_{\mathrm{chosen}(c)}
            + \mathrm{mean}_{n \,\mathrm{reads}\, c} W_9 h_n' + \mathrm{sum}_{n \,\mathrm{chosen, reads}\, c} W_{10}
            h_n')

    with all embeddings on the right normalised by a layer norm.

    Args:
        hidden (int): width of all embeddings.

    Shapes:
        - **input:** e-nodes :math:`(N, hidden)`, classes :math:`(C, hidden)`, a `Batch`
        - **output:** e-nodes :math:`(N, hidden)`, classes :math:`(C, hidden)`
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.mean, self.sum = SimpleConv(aggr="mean"), SimpleConv(aggr="sum")
        self.node_norm, self.class_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.node_own, self.node_out = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, 2 * hidden, bias=False)
        self.class_own, self.class_out = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, 4 * hidden, bias=False)
        for out in (self.node_out, self.class_out):
            nn.init.zeros_(out.bias)

    def forward(self, nodes: Tensor, classes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        n, c = nodes.size(0), classes.size(0)
        normal = self.class_norm(classes)
        own, read = self.down(normal).split(self.hidden, dim=-1)
        message = self.node_own(self.node_norm(nodes)) + own.index_select(0, batch.member)
        message = message + self.mean((read, message), batch.operand, size=(c, n))
        nodes = nodes + self.node_out(torch.relu(message))

        up, used = batch.operand.flip(0), batch.chosen.unsqueeze(-1)
        mine, chosen, reader, user = self.up(self.node_norm(nodes)).split(self.hidden, dim=-1)
        message = self.class_own(normal)
        message = message + scatter(mine, batch.member, dim=0, dim_size=c, reduce="mean")
        message = message + scatter(chosen * used, batch.member, dim=0, dim_size=c, reduce="sum")
        message = message + self.mean((reader, message), up, size=(n, c))
        message = message + self.sum((user * used, message), up, size=(n, c))
        return nodes, classes + self.class_out(torch.relu(message))


class PolicyNetwork(nn.Module):
    """Encoder, pointer head and value head.

    An action is scored from the embeddings of the e-node that it puts in, of the one that it takes out and of their
    class (averaged over its sites), its move features, and the whole graph's embedding; Stop from its move features
    and the graph. The value is read from the graph and from a softmax-weighted mean of the actions.

    Args:
        hidden (int): width of all embeddings.
        rounds (int): rounds of messages.

    Shapes:
        - **input:** a `Batch` of B graphs with L legal actions in all
        - **output:** scores :math:`(L)`, values :math:`(B)`
    """

    def __init__(self, hidden: int = 48, rounds: int = 3) -> None:
        super().__init__()
        self.hidden, self.rounds = hidden, rounds
        context = PROGRESS_FEATURES + TARGET_FEATURES
        self.kind = nn.Embedding(KINDS, hidden)
        self.node_in = nn.Linear(NODE_FEATURES + 1, hidden)
        self.class_in = nn.Linear(CLASS_FEATURES + 2, hidden)
        self.context = nn.Linear(context, 2 * hidden, bias=False)
        self.exchanges = nn.ModuleList(Exchange(hidden) for _ in range(rounds))
        self.graph = nn.Sequential(nn.Linear(hidden + context, hidden), nn.ReLU())
        self.put_in, self.take_out, self.site = (nn.Linear(hidden, hidden, bias=False) for _ in range(3))
        self.move_in = nn.Linear(MOVE_FEATURES, hidden)
        self.graph_in = nn.Linear(hidden, hidden)
        self.action = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, 1)
        last_value = nn.Linear(hidden, 1)
        self.value = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), last_value)
        for last in (self.score, last_value):
            nn.init.orthogonal_(last.weight, 0.1)
            nn.init.zeros_(last.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        for_nodes, for_classes = self.context(batch.progress).chunk(2, dim=-1)
        nodes = self.node_in(torch.cat([batch.nodes, batch.chosen.unsqueeze(-1)], dim=-1))
        nodes = torch.relu(nodes + self.kind(batch.kinds) + for_nodes.index_select(0, batch.node_graph))
        classes = self.class_in(torch.cat([batch.classes, batch.live], dim=-1))
        classes = torch.relu(classes + for_classes.index_select(0, batch.class_graph))
        for exchange in self.exchanges:
            nodes, classes = exchange(nodes, classes, batch)

        alive = batch.live[:, :1]
        count = scatter(alive, batch.class_graph, dim=0, dim_size=batch.size, reduce="sum").clamp(min=1)
        pooled = scatter(classes * alive, batch.class_graph, dim=0, dim_size=batch.size, reduce="sum") / count
        graph = self.graph(torch.cat([pooled, batch.progress], dim=-1))

        c, total = classes.size(0), batch.legal.size(0)
        used = self.take_out(nodes) * batch.chosen.unsqueeze(-1)
        klass = self.site(classes) + scatter(used, batch.member, dim=0, dim_size=c, reduce="sum")
        where = batch.member.index_select(0, batch.site_node)
        change = self.put_in(nodes).index_select(0, batch.site_node) + klass.index_select(0, where)
        change = scatter(change, batch.site_action, dim=0, dim_size=total, reduce="mean")
        around = self.graph_in(graph).index_select(0, batch.action_graph)
        action = self.action(change + self.move_in(batch.moves) + around)
        scores = self.score(action).squeeze(-1)
        weight = softmax(scores, batch.action_graph, num_nodes=batch.size).detach()
        outlook = scatter(action * weight.unsqueeze(-1), batch.action_graph, dim=0, dim_size=batch.size, reduce="sum")
        return scores, self.value(torch.cat([graph, outlook], dim=-1)).squeeze(-1)


def log_probabilities(scores: Tensor, batch: Batch) -> Tensor:
    """Log of the probability of each legal action among those of its graph, shape (L)."""
    top = scatter(scores, batch.action_graph, dim=0, dim_size=batch.size, reduce="max")[batch.action_graph]
    shifted = scores - top
    total = scatter(shifted.exp(), batch.action_graph, dim=0, dim_size=batch.size, reduce="sum")
    return shifted - total.log()[batch.action_graph]


def sample(logits: Tensor, batch: Batch, generator: torch.Generator | None = None, greedy: bool = False) -> Tensor:
    """The row of one legal action of each graph, shape (B): drawn by the Gumbel-max trick, or the likeliest."""
    if not greedy:
        uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
        logits = logits - torch.log(-torch.log(uniform))
    best = scatter(logits, batch.action_graph, dim=0, dim_size=batch.size, reduce="max")
    rows = torch.arange(logits.size(0))
    last = logits.size(0)
    return scatter(
        torch.where(logits >= best[batch.action_graph], rows, last),
        batch.action_graph,
        dim_size=batch.size,
        reduce="min",
    )
