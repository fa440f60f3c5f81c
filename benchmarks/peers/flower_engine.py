"""The round on Flower's simulation engine: parameters to every node, a gradient back, nodes as Ray actors' work."""

import os
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from torch import Tensor
from work import World, device_gradient, trained, world

TIMEOUT_S = 600.0


def client(spec: tuple[str, int, int, int]) -> ClientApp:
    """A node: sets the parameters that came, sends its gradient. The model is built once in an actor's life."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        here, device = world(*spec), int(context.node_config["partition-id"])
        whole = torch.from_numpy(message.content["parameters"].to_numpy_ndarrays()[0])
        with torch.no_grad():
            for parameter, part in zip(
                trained(here.one), whole.split([p.numel() for p in trained(here.one)]), strict=True
            ):
                parameter.copy_(part.reshape(parameter.shape))
        found = device_gradient(here, device, int(message.content["config"]["turn"]))
        content = RecordDict({"gradient": ArrayRecord([found.numpy()]), "who": MetricRecord({"device": device})})
        return Message(content, reply_to=message)

    return app


def played(grid: Grid, here: World, turn: int) -> Tensor:
    """One round: the mean of all nodes' gradients, added in the order of devices."""
    whole = torch.cat([parameter.detach().flatten() for parameter in trained(here.one)]).numpy()
    messages = [
        Message(
            RecordDict({"parameters": ArrayRecord([whole]), "config": ConfigRecord({"turn": turn})}),
            dst_node_id=node, message_type="train", group_id=str(turn),
        )
        for node in sorted(grid.get_node_ids())
    ]  # fmt: skip
    parts: dict[int, Any] = {}
    for reply in grid.send_and_receive(messages, timeout=TIMEOUT_S):
        if reply.has_error():
            raise RuntimeError(f"Flower: {reply.error.reason}")
        parts[int(reply.content["who"]["device"])] = reply.content["gradient"].to_numpy_ndarrays()[0]
    if len(parts) != len(here.made.clients.shards):
        raise RuntimeError(f"Flower: {len(parts)} of {len(here.made.clients.shards)} devices answered")
    return sum(torch.from_numpy(parts[device]) for device in sorted(parts)) / len(parts)  # type: ignore[return-value]


def within(spec: tuple[str, int, int, int], here: World, work: Callable[[Callable[[int], Tensor]], Any]) -> Any:
    """What `work` returns, told how to play a round on Flower, while its simulation runs."""
    server, found, failed = ServerApp(), list[Any](), list[BaseException]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            found.append(work(lambda turn: played(grid, here, turn)))
        except BaseException as error:
            failed.append(error)

    run_simulation(
        server, client(spec), spec[1],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False, "log_to_driver": False},
        },
    )  # fmt: skip
    if failed or not found:
        raise failed[0] if failed else RuntimeError("Flower's simulation ended before the server app")
    return found[0]
