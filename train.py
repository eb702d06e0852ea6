"""`python -m xrlflow.train --out policy.pt [MODEL …]`: train the extraction policy, or fine-tune one.

Without models it learns from random small networks, puzzles and small zoo models (`policy.pretraining`); models are
added to these, or with `--policy FILE` are all that the policy in FILE is trained on further. A MODEL is an ONNX file
or a name of `xrlflow.zoo`. The file written holds the weights and an account: command, seed, versions, targets,
curve.

The shipped policy was made by the command in its own account:

    python -c "from xrlflow.policy.artefact import load_policy; print(load_policy()[1]['command'])"
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .policy.ppo import Curve
    from .policy.pretraining import Task


def parser() -> argparse.ArgumentParser:
    from .extract import Parser

    p = Parser("xrlflow.train", description="Train the extraction policy, or fine-tune one on your own models.")
    p.add_argument("models", nargs="*", metavar="MODEL", help="ONNX files, or names of xrlflow.zoo, to train on")
    p.add_argument("--out", required=True, metavar="FILE", help="where to write the policy")
    p.add_argument("--policy", metavar="FILE", help="start from this policy and train on the models only")
    p.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        help="targets of the models: roofline:DEVICE, llvm, cuda or onnxruntime; repeatable (default: three rooflines)",
    )
    p.add_argument("--minutes", type=float, metavar="M", help="train for so long (default: 8, or as --iterations says)")
    p.add_argument("--iterations", type=int, metavar="N", help="rounds of collecting and learning")
    p.add_argument("--networks", type=int, default=120, metavar="N", help="random networks (default: %(default)s)")
    p.add_argument("--puzzles", type=int, default=40, metavar="N", help="puzzles (default: %(default)s)")
    p.add_argument(
        "--fused", type=float, default=0.0, metavar="SHARE", help="tasks whose cost is of fused kernels (default: none)"
    )
    p.add_argument("--max-weight-growth", type=float, default=1.05, metavar="F", help="limit for the models' weights")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    p.add_argument("--seed", type=int, default=1, metavar="N", help="seed of everything random (default: %(default)s)")
    p.add_argument("--quiet", action="store_true", help="print nothing")
    return p


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """The spaces to train on."""
    from .cost.base import bind
    from .options import Options
    from .pipeline import find_target
    from .policy.pretraining import DEVICES, task, training_set, zoo_space
    from .pricing import cost_model

    tasks = [] if options.policy else training_set(options.seed, options.networks, options.puzzles, fused=options.fused)
    targets = options.target or [f"roofline:{d}" for d in DEVICES]
    costs = (None, "fusion") if options.fused and not options.target else (None,)
    models = [cost_model(find_target(t, options.threads), c, Options(), 120.0, None) for t in targets for c in costs]
    for name in options.models:
        space = zoo_space(name)
        for model in models:
            tasks.append(task(f"{name} on {model.name}", space, bind(model, space, options.max_weight_growth)))
    return tasks


def train(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Train as the options say and write the policy; returns its account."""
    if options.policy and not options.models:
        raise UserError("--policy fine-tunes on models: give at least one MODEL")
    if not 0.0 <= options.fused <= 1.0:
        raise UserError(f"--fused is a share from 0 to 1, not {options.fused}")
    if (options.minutes is not None and not options.minutes > 0) or (options.iterations or 1) < 1:
        raise UserError("--minutes and --iterations must be positive")
    from .policy.artefact import load_policy, save_policy
    from .policy.ppo import Arguments
    from .policy.ppo import train as ppo
    from .policy.pretraining import NOISE

    network, before = load_policy(options.policy) if options.policy else (None, {})
    tasks = tasks_of(options)
    if not tasks:
        raise UserError("nothing to train on: give a MODEL or more --networks")
    seconds = 60 * options.minutes if options.minutes else (None if options.iterations else 480.0)
    args = Arguments(
        seed=options.seed, seconds=seconds, iterations=options.iterations or 10_000, threads=options.threads
    )
    if network:  # a trained policy is changed with care: smaller steps, less randomness
        args = replace(args, learning_rate=3e-4, entropy=0.003)

    def tell(c: Curve) -> None:
        print(
            f"iteration {c.iteration:4d}  steps {c.steps:7d}  {c.seconds:5.0f} s  gain {c.gain:.3f} of climb's  "
            f"length {c.length:4.1f}  entropy {c.entropy:.2f}  kl {c.kl:.4f}  explained {c.explained:.2f}",
            flush=True,
        )

    if not options.quiet:
        print(f"{len(tasks)} spaces of {sum(t.space.n_nodes for t in tasks) / len(tasks):.0f} e-nodes on average")
    net, curve = ppo(tasks, args, network, None if options.quiet else tell)
    targets = sorted({t.cost.name.removesuffix(NOISE) for t in tasks} | set(before.get("targets", ())))
    account = {
        "command": command,
        "seed": options.seed,
        "targets": targets,
        "tasks": len(tasks),
        "steps": curve[-1].steps if curve else 0,
        "seconds": round(curve[-1].seconds, 1) if curve else 0.0,
        "arguments": asdict(args),
        "curve": [[c.steps, round(c.seconds, 1), round(c.gain, 4), round(c.entropy, 3)] for c in curve],
        "curve_columns": ["steps", "seconds", "gain as a share of climb's", "entropy"],
        "fine_tuned_from": before.get("command"),
    }
    save_policy(options.out, net, account)
    return account


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        train(options, "python -m xrlflow.train " + shlex.join(arguments))
    except UserError as error:
        print(f"xrlflow.train: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
