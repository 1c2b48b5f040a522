"""Ray Serve: replicas of the tree engine behind the routes of ``jakiro serve``.

    serve run jakiro.integrations.ray:app target=pico min_replicas=1 max_replicas=4

Every replica has a target, a drafter and a scheduler of its own. Ray's proxy gives each request to
a replica with room; one that dies takes its streams with it, no others, and is replaced.
"""

# Ray reads the annotation of ``app`` itself, so annotations stay what they are.

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig

from jakiro.api import load
from jakiro.engine.scheduler import Scheduler
from jakiro.serve.app import create_app
from jakiro.serve.settings import Settings


class Options(BaseModel):
    """What ``serve run`` and a Serve config file may say. The key of the API is not among them, as
    Ray shows them to everybody: it is taken from ``JAKIRO_API_KEY``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = "pico"
    drafter: str | None = None
    tree: str | None = None
    dtype: str | None = None
    device: str | None = None
    served_model_name: str | None = None
    """None: the target's."""
    max_batch_size: int = Field(8, ge=1)
    """Answers a replica makes at once."""
    max_waiting: int = Field(64, ge=0)
    """Answers that may wait in a replica, and as many again in Ray's proxy; more are refused. With
    0 none waits in a replica, and in the proxy as many as come."""
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing: float | None = Field(None, gt=0)
    """Requests per replica that autoscaling aims at; None: ``max_batch_size``."""
    cpus: float = Field(1, ge=0)
    """Of one replica, which are also its threads."""
    gpus: float = Field(0, ge=0)
    deadline_s: float | None = Field(None, gt=0)
    """Seconds after which an answer ends with what there is; requests may ask for fewer."""
    grace_s: float = Field(20, ge=0)
    """What running answers get when a replica is taken away."""

    @model_validator(mode="after")
    def _check(self) -> "Options":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}; "
                "give a max_replicas that is not smaller"
            )
        return self


class Replica:
    """One engine. Raises, where Ray shows it as a failed deployment, what ``jakiro.load`` does."""

    def __init__(self, options: Options, api_key: str | None) -> None:
        engine = load(
            options.target,
            options.drafter,
            tree=options.tree,
            dtype=options.dtype,
            device=options.device,
            max_batch_size=options.max_batch_size,
        )
        self._scheduler = Scheduler(engine, max_waiting=options.max_waiting)
        name = options.served_model_name or Path(options.target).name
        self._settings = Settings(name, api_key, deadline_s=options.deadline_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray asks for it after the constructor."""
        return create_app(self._scheduler, self._settings)

    def check_health(self) -> None:
        """Ray asks every few seconds, and replaces a replica that raises."""
        if not self._scheduler.is_open:
            raise RuntimeError("the scheduler has stopped")


def app(options: Options) -> serve.Application:
    """The application for ``serve run``, ``serve deploy`` and ``ray.serve.run``."""
    scaling: dict[str, Any] = {"num_replicas": options.max_replicas}
    if options.min_replicas < options.max_replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.min_replicas,
                max_replicas=options.max_replicas,
                target_ongoing_requests=options.target_ongoing or options.max_batch_size,
            )
        }
    deployed = serve.deployment(
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=options.max_batch_size + options.max_waiting,
        max_queued_requests=options.max_waiting or -1,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=options.grace_s,
        **scaling,
    )(serve.ingress()(Replica))
    return deployed.bind(options, os.environ.get("JAKIRO_API_KEY"))
