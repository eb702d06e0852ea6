"""`python -m xrlflow.cache`: what was measured on this machine, and how to take it to another one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .errors import UserError


def parser() -> argparse.ArgumentParser:
    from .extract import Parser

    p = Parser("xrlflow.cache", description="Look at the measurements that are remembered; exchange them.")
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=argparse.ArgumentParser)
    verbs.add_parser("stats", help="what is known, by target and tuning")
    out = verbs.add_parser("export", help="write everything to one file")
    out.add_argument("file", metavar="FILE", help="compressed if its name ends in .gz")
    back = verbs.add_parser("merge", help="take over what files have that is newer or faster")
    back.add_argument("files", nargs="+", metavar="FILE", help="made by export, on a machine of the same kind")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(arguments)
    from .cost.database import Database
    from .cost.exchange import export, holdings, merge
    from .cost.target import Target, usable_targets

    try:
        with Database() as database:
            if args.verb == "export":
                print(f"{export(database, args.file)} latencies written to {args.file}")
            elif args.verb == "merge":
                for file in args.files:
                    latencies, schedules = merge(database, file)
                    print(f"{file}: {latencies} latencies and {schedules} schedules taken over")
            else:
                here = {
                    Target(kind, threads=n).fingerprint(): kind
                    for kind, missing in usable_targets().items()
                    if not missing and ":" not in kind
                    for n in (1, 2, 4, 8)
                }
                print(f"{database.folder}: {len(database)} latencies")
                for h in holdings(database):
                    name = here.get(h.target, "another machine's, or of other versions")
                    print(
                        f"  {h.target} ({name}), {h.threads} threads, {h.state or 'untuned'}: {h.kernels} kernels, "
                        f"{h.failed} of them cannot run, {h.schedules} schedules"
                    )
    except UserError as error:
        print(f"xrlflow.cache: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
