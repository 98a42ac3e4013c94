"""A real kernel, driven as a notebook drives it."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.support.launchers import python_path

WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_S = 180.0  # the first cell of a kernel may import TensorFlow on a busy machine


@dataclass
class Cell:
    """What running a cell brought: the reply and the outputs as a notebook would keep them."""

    reply: dict[str, Any] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # every MIME type that was ever shown

    @property
    def ok(self) -> bool:
        return bool(self.reply["status"] == "ok")

    @property
    def text(self) -> str:
        """Every stream and every text/plain, in order."""
        return "".join(one.get("text") or one.get("data", {}).get("text/plain", "") + "\n" for one in self.outputs)

    @property
    def error(self) -> str:
        """The traceback as it is shown, without colours."""
        import re

        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(self.reply.get("traceback", [])))

    def of(self, mime: str) -> list[Any]:
        return [one["data"][mime] for one in self.outputs if mime in one.get("data", {})]


class Kernel:
    """Runs cells and keeps their outputs as a front end does: updates find theirs by `display_id`."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self._displayed: dict[str, dict[str, Any]] = {}

    def run(self, code: str, *, timeout_s: float = CELL_S) -> Cell:
        return self.wait(self.start(code), timeout_s=timeout_s)

    def start(self, code: str) -> str:
        return str(self.client.execute(code, store_history=True))

    def wait(self, message: str, *, timeout_s: float = CELL_S, until: str | None = None, cell: Cell | None = None) -> Cell:
        """Collect until the cell is idle, or until `until` was shown."""
        cell = cell or Cell()
        deadline = time.monotonic() + timeout_s
        while True:
            told = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            self._take(told, cell, message)
            if until is not None and any(until in str(one) for one in cell.outputs):
                return cell
            mine = told["parent_header"].get("msg_id") == message
            if mine and told["msg_type"] == "status" and told["content"]["execution_state"] == "idle":
                assert until is None, f"the cell ended before {until!r} was shown: {cell.outputs}"
                break
        while True:
            reply = self.client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            if reply["parent_header"].get("msg_id") == message:
                cell.reply = reply["content"]
                return cell

    def drain(self, cell: Cell, *, seconds: float) -> None:
        """Take what background threads still send."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self._take(self.client.get_iopub_msg(timeout=0.1), cell, "")
            except queue.Empty:
                continue

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def _take(self, told: dict[str, Any], cell: Cell, message: str) -> None:
        kind, content = told["msg_type"], told["content"]
        if kind == "update_display_data":
            target = self._displayed.get(content["transient"]["display_id"])
            if target is not None:
                target["data"] = content["data"]
            cell.seen += content["data"]
            return
        if told["parent_header"].get("msg_id") != message:
            return
        if kind == "stream":
            if cell.outputs and cell.outputs[-1].get("name") == content["name"]:
                cell.outputs[-1]["text"] += content["text"]
            else:
                cell.outputs.append({"name": content["name"], "text": content["text"]})
        elif kind in {"display_data", "execute_result"}:
            output = {"data": content["data"], "kind": kind}
            cell.outputs.append(output)
            cell.seen += content["data"]
            if identity := content.get("transient", {}).get("display_id"):
                self._displayed[identity] = output


def started(folder: Path, *, packages: Path | None = None) -> Iterator[Kernel]:
    """`packages` is a folder whose modules count as installed, in the kernel and in the local server that it starts."""
    manager = KernelManager(kernel_name="python3")
    path = python_path(Path(__file__).parents[2], *([] if packages is None else [packages]))
    # Libraries write sets into files (KerasTuner its trials): two kernels write them in one order.
    manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    yield from started(tmp_path_factory.mktemp("notebook"))


@pytest.fixture
def fresh_kernel(tmp_path: Path) -> Iterator[Kernel]:
    yield from started(tmp_path)
