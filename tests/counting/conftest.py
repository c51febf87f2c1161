"""Fixtures of the counting room."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _module(name: str) -> ModuleType:
    """A module that lies beside this file; pytest's importlib mode puts no folder on the path."""
    full = f"moegauge_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def loopback() -> ModuleType:
    """The module `loopback_hub`."""
    return _module("loopback_hub")


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module `synthetic_headers`."""
    return _module("synthetic_headers")


@pytest.fixture(scope="module")
def hub(loopback: ModuleType) -> Iterator[Any]:
    """A Hub on 127.0.0.1 with no repos yet; tests of one module share it and use repos of their own."""
    server = loopback.Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(loopback: ModuleType, hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real client in another process, with a cache of its own."""
    process = loopback.Client(hub.environment(tmp_path_factory.mktemp("home")))
    yield process
    process.close()
