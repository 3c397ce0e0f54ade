"""The application as `make serve` starts it, on a machine whose clock is the simulated one.

No client of ours may say when a decision was made, and a benchmark that lives two weeks in ten minutes must. So the
replica of this benchmark, and nothing else of it, reads its clock from the request: a client writes the simulated time,
in seconds since 1970, where others write an id (X-Request-ID). All else is the product's: HAProxy, Serve, gateway,
policy, decision log on the disk. A request without such a time has the time of the machine.

    python -m benchmarks.loop_server PORT '{"models": …, "decision_log": …}'     # until its standard input ends
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from recfuse.runtime import ray_compat
from recfuse.serving import fusion
from recfuse.serving.config import ServingConfig
from recfuse.serving.deployments import Application, ApplicationDeployment
from recfuse.serving.local import running
from recfuse.serving.logs import REQUEST_ID


class RequestClock:
    """Stands for the module `time` where decisions and feedback are stamped."""

    @staticmethod
    def time() -> float:
        """Seconds since 1970 that the request says, else the machine's."""
        try:
            return float(REQUEST_ID.get())
        except ValueError:
            return time.time()


class Simulated(Application):
    """The application, stamped by the clock of its requests."""

    async def __init__(self, config: ServingConfig) -> None:
        fusion.time = RequestClock()  # type: ignore[assignment]
        await super().__init__(config)


def main(port: int, options: dict[str, Any]) -> None:
    """Serves until the standard input ends."""
    config = ServingConfig(**options).absolute()
    ray_compat.start_local(num_cpus=2, object_store_memory=256 << 20)
    with running(ApplicationDeployment.options(func_or_class=Simulated).bind(config), port):
        sys.stdin.read()


if __name__ == "__main__":
    # Ray sends classes by the name of their module, which must not be that of a program.
    from benchmarks import loop_server

    loop_server.main(int(sys.argv[1]), json.loads(sys.argv[2]))
