"""Ray's side: a cluster that is joined or started, and the replicas put on it."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dalle_mini import model_names
from dalle_mini.config import ModelConfig
from dalle_mini.serving.engine import MOST_SLOTS
from dalle_mini.serving.ray.replica import MANY, Replica
from vqgan.files import CheckpointError

APPLICATION = "dalle-mini"
HEALTH = 2.0  # seconds between two looks of Serve at a replica
BUSY = 8  # requests at each replica, above which a cluster that scales starts another
LEAVE = 60.0  # seconds that a replica which is not needed any more has to finish
REMOVING = 2.0  # seconds until Ray's files can be removed
OBJECT_STORE = 80 * 2**20  # bytes, about the least that Ray takes; our events are too small to go there


def deploy(
    model: str | Path, config: ModelConfig, *, fewest: int, most: int, slots: int | None, max_waiting: int
) -> "DeploymentHandle[Replica]":
    """The replicas, all of them ready. Raises ValueError, and CheckpointError where none could be started."""
    scaling = AutoscalingConfig(min_replicas=fewest, max_replicas=most, target_ongoing_requests=BUSY)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    deployment = serve.deployment(
        Replica,
        num_replicas=fewest if fewest == most else None,
        autoscaling_config=None if fewest == most else scaling,
        max_ongoing_requests=MANY,
        max_queued_requests=most * (max_waiting + 2 * (slots or MOST_SLOTS)),  # as many as they would take
        ray_actor_options=place(fewest),
        graceful_shutdown_timeout_s=LEAVE,
        health_check_period_s=HEALTH,
        max_constructor_retry_count=2,
        logging_config=quiet,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        bound = deployment.bind(_everywhere(model), config, slots, max_waiting)
        return serve.run(bound, name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise CheckpointError(f"no replica could be started: {error}") from error


def _everywhere(model: str | Path) -> str:
    """What a replica, which has another working folder, finds the model by."""
    on_the_shelf = str(model) in ("emoji", *model_names.SHELF)
    return str(Path(model).resolve()) if not on_the_shelf and Path(model).is_dir() else str(model)


def place(fewest: int) -> dict[str, float]:
    """What a replica takes of its machine. Raises ValueError where there is too little for the fewest replicas."""
    if not (gpus := int(ray.cluster_resources().get("GPU", 0))):
        return {"num_cpus": 1}  # a cluster that is started here has as many as there are replicas
    if fewest > gpus and "RAY_ADDRESS" not in os.environ:  # other clusters may grow
        raise ValueError(f"replicas must be <= {gpus}, the GPUs of this machine, got {fewest}")
    return {"num_gpus": 1}


@contextmanager
def cluster(processes: int) -> Iterator[None]:
    """Ray, connected: to the cluster that RAY_ADDRESS names, or to one for this process alone."""
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING)
        try:
            yield
        finally:
            serve.delete(APPLICATION, _blocking=False)
            ray.shutdown()
        return
    folder = Path(tempfile.mkdtemp(prefix="dalle-ray-"))
    try:
        ray.init(
            "local",
            num_cpus=processes,
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        deadline = time.monotonic() + REMOVING
        while folder.exists() and time.monotonic() < deadline:  # Ray's last processes are still writing
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)
