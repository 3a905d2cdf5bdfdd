"""The load of the machine while a run is trained: CPU, memory, disk, network, GPUs, under the names MLflow shows."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..runs.run import Run
from ..settings.console import first_line
from . import mlflow_client, payload

log = logging.getLogger(__name__)


class SystemLoad:
    """A thread that measures it and adds it to the rows of a run; a row's step is its number.

    Args:
        run: whose rows.
        every_s: seconds between two of them.
    """

    def __init__(self, run: Run, every_s: float) -> None:
        self.run = run
        self.every_s = every_s
        rows = payload.read_rows(run)
        self.num_samples = sum(any(name.startswith("system/") for name in row["metrics"]) for row in rows)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, name="system", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(2)

    def _work(self) -> None:
        try:
            monitors = _monitors()
            for monitor in monitors:
                monitor.collect_metrics()  # the first load of the CPU is always 0
                monitor.clear_metrics()
            while not self.stopping.wait(self.every_s):
                metrics: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    metrics |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                payload.add_row(self.run, self.num_samples, metrics, int(time.time() * 1000))
                self.num_samples += 1
        except Exception as error:
            log.warning("the machine's load is not recorded: %s", first_line(error))


def _monitors() -> list[Any]:
    """MLflow's own, without what sends their values."""
    mlflow_client.quiet_mlflow()
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    kinds: list[Callable[[], Any]] = [
        cpu_monitor.CPUMonitor, disk_monitor.DiskMonitor, network_monitor.NetworkMonitor, gpu_monitor.GPUMonitor,
    ]  # fmt: skip
    monitors = []
    for kind in kinds:
        with suppress(Exception):  # no NVIDIA driver, no network, ...
            monitors.append(kind())
    return monitors
