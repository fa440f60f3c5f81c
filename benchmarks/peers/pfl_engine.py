"""The round on pfl's simulated backend: its own loop over users, aggregation of statistics and resets of the model."""

from collections.abc import Callable
from typing import Any

import torch
from central import backward
from fleets import CLASSES
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics
from torch import Tensor
from work import World


class OneGradient(FederatedAveraging):
    """An algorithm whose users send one gradient and take no step."""

    def train_one_user(
        self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
    ) -> tuple[MappedVectorStatistics, Metrics]:
        """The gradient of the mean loss over the user's samples."""
        model.pytorch_model.loss(*user_dataset.raw_data)
        # the model's gradients are set to None before the next user's: these tensors are the user's own
        return MappedVectorStatistics({name: p.grad for name, p in model.variable_map.items()}), Metrics()


class Wrapped(torch.nn.Module):
    """PEFT's model as pfl wants it: `loss` of a user's data, which here goes backward too; no metrics are asked for."""

    def __init__(self, here: World) -> None:
        super().__init__()
        self.here, self.peft = here, here.one.model

    def loss(self, device: Any, turn: Any) -> None:
        rows = self.here.rows(int(device[0]), int(turn[0]))
        shard = self.here.made.clients.shards[int(device[0])]
        backward(self.here.one, [(shard[i], 1 / len(rows), CLASSES) for i in rows])

    def metrics(self, *_data: Any) -> dict[str, Any]:
        return {}


def engine(here: World) -> Callable[[int], Tensor]:
    """Rounds of all devices on pfl, as sums of their gradients over their number."""
    devices = len(here.made.clients.shards)
    wrapped = Wrapped(here)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    model = PyTorchModel(wrapped, lambda p: torch.optim.SGD(trained, 1.0), torch.optim.SGD(trained, 1.0))
    turn, users = [0], [0]

    def next_user() -> int:
        users[0] += 1
        return (users[0] - 1) % devices

    def data(user: int) -> Dataset:
        return Dataset([torch.tensor([user]), torch.tensor([turn[0]])], user_id=str(user))

    backend = SimulatedBackend(FederatedDataset(data, next_user), FederatedDataset(data, next_user))
    algorithm = OneGradient()

    def play(number: int) -> Tensor:
        turn[0] = number
        context: Any = CentralContext(number, False, devices, Population.TRAIN, None, None)
        statistics, _ = backend.gather_results(model, algorithm, central_context=context)
        assert statistics is not None
        return torch.cat([statistics[name].flatten() for name in model.variable_map]) / devices

    return play
