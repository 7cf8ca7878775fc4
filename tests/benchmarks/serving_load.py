"""wrk: as many requests as a server can take, or so many a second. What is asked differs from request to request."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("serving_load.lua")


@dataclass(frozen=True)
class Load:
    """What a load came to. `p50` and `p99` are latencies in seconds; `late`: see the script."""

    requests: int
    seconds: float
    failed: int
    p50: float
    p99: float
    late: int

    @property
    def rate(self) -> float:
        """Answers a second. Raises RuntimeError where some failed: what fails fast is not fast."""
        if self.failed:
            raise RuntimeError(f"{self.failed} of {self.requests} requests failed, so their rate means nothing")
        return self.requests / self.seconds


def load(url: str, bodies: Path, *, connections: int, seconds: float, rate: float | None = None) -> Load:
    """Ask for so long; at `rate` requests a second over all connections, or else as fast as answers come."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("the serving rows need wrk: apt-get install wrk, or brew install wrk")
    plan = ["-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}", "--timeout", "20s"]
    paced = [f"{rate:.3f}"] if rate else []
    command = [wrk, *plan, "-s", str(SCRIPT), url, "--", str(bodies), *paced]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise RuntimeError(f"wrk ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return Load(**json.loads(done.stdout.strip().rpartition("\n")[2]))
