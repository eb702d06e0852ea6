"""`python -m xrlflow.serve --tracker HOST:PORT --key KEY`: let searches elsewhere measure on this machine.

Runs TVM's RPC server under a tracker (`python -m tvm.exec.rpc_tracker --port 9190` starts one) and starts it again when
a program that it was given took it along: TVM's own server ends with the first session that crashes.

Whoever reaches the tracker can run any code on this machine: use it in networks that you trust only.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from .errors import UserError

AGAIN = 1.0
"""Seconds before a server that ended is started again; doubled each time that it lasted for less than a minute."""

_SERVER = """
import sys
from tvm.rpc.server import PopenRPCServerState
host, port, end, tracker_host, tracker_port, key, address = sys.argv[1:]
state = PopenRPCServerState(
    host, int(port), int(end), tracker_addr=(tracker_host, int(tracker_port)), key=key, custom_addr=address or None
)
state.thread.join()
sys.exit(3)
"""


def parser() -> argparse.ArgumentParser:
    from .extract import Parser

    p = Parser("xrlflow.serve", description="Let searches elsewhere measure on this machine, through an RPC tracker.")
    p.add_argument("--tracker", required=True, metavar="HOST:PORT", help="the tracker to register with")
    p.add_argument("--key", required=True, metavar="KEY", help="what to be called there; equal devices share a key")
    p.add_argument("--host", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    p.add_argument("--port", type=int, default=9300, metavar="N", help="first port to try (default: %(default)s)")
    p.add_argument(
        "--address", default="", metavar="HOST", help="what the tracker is to tell others to connect to, if not --host"
    )
    return p


def serve(tracker: str, key: str, host: str = "0.0.0.0", port: int = 9300, address: str = "") -> None:
    """Serve until interrupted. Raises `UserError` if the tracker's address makes no sense or nothing answers there."""
    from .lowering.tvm_remote import parse_tracker, reach

    try:
        tracker_host, tracker_port = parse_tracker(tracker)
        reach(tracker)
    except (ValueError, ConnectionError) as error:
        raise UserError(f"--tracker: {error}") from None
    command = [sys.executable, "-u", "-c", _SERVER, host, str(port), "65535", tracker_host, str(tracker_port), key]
    pause = AGAIN
    while True:
        start = time.monotonic()
        with subprocess.Popen([*command, address]) as process:
            try:
                code = process.wait()
            finally:
                process.kill()
        pause = AGAIN if time.monotonic() - start > 60 else min(60.0, 2 * pause)
        print(f"xrlflow.serve: the server ended ({code}); starting it again", file=sys.stderr, flush=True)
        time.sleep(pause)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # the server is to end with this process
    try:
        serve(args.tracker, args.key, args.host, args.port, args.address)
    except UserError as error:
        print(f"xrlflow.serve: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
