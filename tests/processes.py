"""Run a function in several gloo processes and bring back what each returns."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing


def in_processes(world_size: int, function: Callable[..., Any], directory: Path, *args: Any) -> list[Any]:
    """``function(rank, world_size, *args)`` in each of ``world_size`` forked processes, in order of rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _run, (world_size, port, function, directory, args), nprocs=world_size, start_method="fork"
    )
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run(rank: int, world_size: int, port: int, function: Callable[..., Any], directory: Path, args: Any) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, world_size, *args), directory / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
