"""Replicas for Ray Serve against a stand-in of Ray; ``make test-ray`` runs them in Ray itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from jakiro.serve.settings import Settings


class Deployed:
    """Keeps what Ray would be told."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, replica: type) -> Deployed:
        self.replica = replica
        return self

    def bind(self, *arguments: Any) -> Deployed:
        self.arguments = arguments
        return self


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    parts: dict[str, dict[str, Any]] = {
        "ray": {},
        "ray.serve": {
            "deployment": Deployed,
            "ingress": lambda: lambda replica: replica,
            "Application": Deployed,
        },
        "ray.serve.config": {"AutoscalingConfig": SimpleNamespace},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["ray"].serve = sys.modules["ray.serve"]  # type: ignore[attr-defined]
    yield import_module("jakiro.integrations.ray")
    sys.modules.pop("jakiro.integrations.ray", None)


def test_ray_is_told_what_was_asked_for(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAKIRO_API_KEY", "a secret key")
    fixed = room.app(room.Options(min_replicas=2, max_replicas=2, max_batch_size=4, max_waiting=3))
    assert fixed.settings["num_replicas"] == 2
    assert (fixed.settings["max_ongoing_requests"], fixed.settings["max_queued_requests"]) == (7, 3)
    assert fixed.arguments[1] == "a secret key"
    moving = room.app(room.Options(max_replicas=3, gpus=1, max_batch_size=4))
    assert vars(moving.settings["autoscaling_config"]) == {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 4,
    }
    assert moving.settings["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    for wrong in ({"min_replicas": 2}, {"replicas": 2}, {"cpus": -1}, {"deadline_s": 0}):
        with pytest.raises(ValidationError):
            room.Options(**wrong)


def test_a_replica_is_healthy_until_its_scheduler_ends(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    scheduler = SimpleNamespace(is_open=True)
    monkeypatch.setattr(room, "load", lambda *names, **settings: asked.append((names, settings)))
    monkeypatch.setattr(room, "Scheduler", lambda engine, max_waiting: scheduler)
    monkeypatch.setattr(room, "create_app", lambda *parts: parts)
    options = room.Options(target="some/model", tree="chain:4", deadline_s=30)
    replica = room.Replica(options, "a secret key")
    assert asked[0][0] == ("some/model", None)
    assert asked[0][1]["tree"] == "chain:4"
    made = replica.__serve_build_asgi_app__()
    assert made == (scheduler, Settings("model", "a secret key", deadline_s=30))
    replica.check_health()
    scheduler.is_open = False
    with pytest.raises(RuntimeError, match="the scheduler has stopped"):
        replica.check_health()
