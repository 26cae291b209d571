"""Shapes in all signatures of the package are checked at run time in the tests."""

import gc
import logging
import os
import random
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from checked_shapes import begin_test, check_shapes

check_shapes("gradcam_kit")
gc.disable()  # until all is collected: what is imported and parametrized stays, and looking through it takes seconds

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores; more threads than cores slow all of them down


_HAS_CUDA = torch.cuda.is_available()
_HIDDEN = pytest.StashKey[pytest.MonkeyPatch]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let workers take neighboring tests, so that fixtures of a module are made by few of them (`-n`, pytest-xdist)."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="seeds the global generators in front of every test")


def pytest_collection_finish() -> None:
    """Let garbage be collected again, but for what stays until the end, and torch's messages reach the root logger.

    pytest attaches its handlers six times in a test to every logger that does not propagate; torch has dozens of them.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker begins one of them when the others have nothing left to do.

    The tests of a file stay together, as they share fixtures.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws must not depend on the tests that the same worker ran before it.

    What chooses a device finds none but for the tests that ask for one: others compare to the last bit.
    """
    begin_test()
    if _HAS_CUDA and item.get_closest_marker("cuda") is None:
        item.stash[_HIDDEN] = hidden = pytest.MonkeyPatch()
        hidden.setattr(torch.cuda, "is_available", lambda: False)
        hidden.setenv("CUDA_VISIBLE_DEVICES", "")  # of commands in other processes
    seed = item.config.getoption("--seed")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - other libraries draw from it
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` costs 100 times as much, for devices nobody uses
    if _HAS_CUDA:
        torch.cuda.manual_seed_all(seed)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The device is there again."""
    if _HIDDEN in item.stash:
        item.stash[_HIDDEN].undo()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of a worker, because Playwright takes a single session in a process."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
