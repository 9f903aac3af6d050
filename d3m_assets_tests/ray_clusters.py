"""A real Ray cluster of two nodes on this machine, whose GPUs are pretended."""

import contextlib
import os
import signal
from pathlib import Path

from d3m_assets_tests.processes import left_after, new_mark, wait_until

# A node that is gone is noticed in seconds instead of twenty; with less patience a busy machine loses living ones.
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 << 20}


@contextlib.contextmanager
def two_nodes():
    """The cluster; at the end nothing of it may be left."""
    import ray
    from ray.cluster_utils import Cluster

    mark = new_mark()
    os.environ.update(mark)
    cluster = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    )
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        ray.shutdown()  # a test that failed may still be connected
        cluster.shutdown()
        for name in mark:
            del os.environ[name]
        left = left_after(mark, 20)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, left


def kill_node(node):
    """SIGKILL for a node and all actors on it, as when its machine loses power."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = [
        int(pid) for file in Path(f"/proc/{raylet}/task").glob("*/children") for pid in file.read_text().split()
    ]
    for pid in [raylet, *children]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def nodes_at_work(workers):
    """Where actors are busy right now, as far as the driver knows."""
    return {worker.node for worker in workers._workers if worker.index is not None}


def gone(pids, seconds=20):
    """Whether processes end within a time."""
    return wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds)
