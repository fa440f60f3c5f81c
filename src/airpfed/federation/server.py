"""The server's part of a federation: gradients from real devices in each round, scores, and exports at the end."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from airpfed.air.schedule import Updates
from airpfed.air.uplink import Aggregate
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger
from airpfed.devices.compression import total_bytes, vector_lengths
from airpfed.federation.device_silence import SilenceRecords
from airpfed.federation.mailbox import GRACE, POLL, Mailbox, Reply
from airpfed.federation.message import Packet, safe_line
from airpfed.federation.registry import Registry
from airpfed.federation.validate import (
    answers_of,
    flops_of,
    gradient_of,
    packed_integers,
    refusal_reason,
    samples_of_device,
)
from airpfed.model.layout import Vectors
from airpfed.training.evaluate import Score, mean_score, score_answers
from airpfed.training.round import Aggregator
from airpfed.training.setup import RoundGradients, TrainingSetup, simulate_score
from airpfed.training.state import State, vectors

Which = Literal["dev", "test"]


@dataclass(frozen=True)
class RoundTerms:
    """When a round starts and ends, and which gradients are accepted; see `FederationSettings`."""

    min_devices: int
    wait_seconds: float
    deadline_seconds: float
    max_norm: float

    @property
    def ttl(self) -> float:
        """Seconds for which a request is valid. A late answer is still reported in the next round."""
        return 2 * self.deadline_seconds + 2 * GRACE


@dataclass
class Federation:
    """Real devices behind Flower's grid.

    run: identifier under which devices keep their own state. aggregator_of: D_k -> the uplink with these weights.
    silence_records: what devices with an error memory are to be told; None if they know what they did not send.
    """

    mailbox: Mailbox
    registry: Registry
    terms: RoundTerms
    run: str
    aggregator_of: Callable[[Tensor], Aggregator]
    stopping: Callable[[], bool]
    silence_records: SilenceRecords | None = None
    aggregate: Aggregator | None = field(default=None)

    def experiment(self, experiment: TrainingSetup) -> TrainingSetup:
        """The same experiment with this federation's devices."""
        return replace(experiment, collect=self.collect, evaluate_task=self.rate, aggregate=self._link)

    def _link(self, t: int, updates: Updates, statistics: Tensor) -> Aggregate:
        assert self.aggregate is not None
        received = self.aggregate(t, updates, statistics)
        if self.silence_records is not None:
            self.silence_records.add(t, received.silences)
        return received

    def collect(self, experiment: TrainingSetup, state: State) -> RoundGradients:
        """Collect a round's gradients from all connected devices that are free, until the deadline.

        A device that still works on an earlier round gets no request: behind an outdated request its answer would be
        late again. Rows of absent devices are NaN.
        """
        t, layout, compute = state.round + 1, experiment.clients.layout, experiment.compute
        assert compute is not None, "a federation's methods compute on devices"
        connected = self.assemble()
        requests = {node: self.request("train", experiment, state, device) for node, device in connected.items()}
        down = self.mailbox.send(requests, self.terms.ttl)
        up, devices, clipped = 0, len(self.registry.task_of), list[bool]()
        rows: Vectors = {s: torch.full((devices, layout.size(s)), torch.nan) for s in ("global", "task")}
        # Row "frozen" only marks absence for methods that send nothing else.
        rows |= {"device": torch.zeros(devices, 0), "frozen": torch.full((devices, 1), torch.nan)}
        loss = torch.full((devices,), torch.nan, dtype=torch.float64)
        flops, late = torch.zeros(devices, dtype=torch.float64), torch.zeros(devices, dtype=torch.bool)
        for reply in self.answers(requests):
            device = connected[reply.node]
            up += reply.size
            try:
                found, loss[device] = self.gradient_from(experiment, reply, device, t)
                flops[device] = flops_of(reply.answer)
            except UserError as error:
                self.registry.log(f"round {t}: device {device} is absent: {error}")
                continue
            late = compute.is_late(flops)
            if bool(late[device]):
                self.registry.log(
                    f"round {t}: device {device} is late: it computes {float(compute.seconds(flops)[device]):.3g} s by "
                    "the ledger, more than server.deadline_seconds"
                )
                continue
            clipped.append(reply.answer.facts.get("clipped") is True)
            for scope, row in found.items():
                rows[scope][device] = row[0]
            rows["frozen"][device] = 0.0
        samples = torch.tensor(self.registry.samples)
        self.aggregate = self.aggregator_of(samples.double())
        cursors = t * experiment.local_training.steps * samples.clamp(max=experiment.local_training.batch_size)
        computed = total_bytes(layout, experiment.clients.task_of, experiment.payload)
        cost = Ledger(payload_bytes=computed, uplink_bytes=up, downlink_bytes=down)
        cost += compute.cost(flops, rows["frozen"][:, 0] == 0)
        return RoundGradients(
            gradients=rows,
            loss=loss.float(),
            cursors=cursors,
            samples=samples.float(),
            cost=cost,
            late=tuple(late.nonzero().flatten().tolist()),
            clipped=sum(clipped) / max(1, len(clipped)) if experiment.local_training.max_norm else None,
        )

    def gradient_from(self, experiment: TrainingSetup, reply: Reply, device: int, t: int) -> tuple[Vectors, float]:
        """A device's gradient and loss. Raises UserError if the answer cannot be used."""
        facts = reply.answer.facts
        if reply.answer.kind != "done":
            raise UserError(refusal_reason(reply.answer))
        run, of, by = (facts.get(name) for name in ("run", "round", "device"))
        if run != self.run or type(of) is not int or of != t:
            raise UserError(f"it answers round {safe_line(of, 20)} of run {safe_line(run, 11)}")
        if type(by) is not int or by != device:
            raise UserError(f"it answers as device {safe_line(by, 20)}")
        samples, task = samples_of_device(reply.answer), self.registry.task_of[device]
        found = gradient_of(reply.answer, experiment.clients.layout, task, experiment.payload, self.terms.max_norm)
        self.registry.samples[device] = samples
        return found

    def assemble(self) -> dict[int, int]:
        """Wait until enough devices are free: node -> device. Raises UserError on timeout or if the run is to stop."""
        devices = len(self.registry.task_of)
        wanted = min(self.terms.min_devices or devices, devices)
        end = time.monotonic() + self.terms.wait_seconds
        while len(connected := self.free()) < wanted:
            there = f"{len(connected)} of {wanted} devices are there (federation.min_devices)"
            there += f", without {self.absent_devices(connected)}"
            if self.stopping() or time.monotonic() >= end:
                raise UserError(f"{there}; go on with --resume")
            self.registry.line("waiting:", f"{there}; for {self.terms.wait_seconds:g} s at most")
            time.sleep(POLL)
        return connected

    def absent_devices(self, connected: Mapping[int, int]) -> str:
        """The numbers of the first ten missing devices, as text."""
        found = [str(device) for device in range(len(self.registry.task_of)) if device not in connected.values()]
        return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")

    def free(self) -> dict[int, int]:
        """Connected devices without an open request: node -> device. Unknown nodes receive a hello."""
        for reply in self.mailbox.receive():
            self.other(reply)
        ids, busy = set(self.mailbox.grid.get_node_ids()), self.mailbox.busy()
        hello = Packet("hello", {"seconds": self.terms.deadline_seconds})
        self.mailbox.send(dict.fromkeys(self.registry.unknown(ids - busy), hello), self.terms.ttl)
        return {node: device for node, device in self.registry.connected(ids).items() if node not in busy}

    def answers(self, requests: Mapping[int, Packet]) -> Iterator[Reply]:
        """Yield replies to these requests until the deadline, then log the devices that did not answer."""
        for reply in self.mailbox.until(lambda: not self.mailbox.waiting(requests), self.terms.deadline_seconds):
            if requests.get(reply.node) is reply.request:
                yield reply
            else:
                self.other(reply)
        for node in [node for node, request in requests.items() if self.mailbox.waiting({node: request})]:
            self.registry.log(
                f"device {self.registry.nodes.get(node)} did not answer ({requests[node].kind}) "
                f"within {self.terms.deadline_seconds:g} s"
            )

    def other(self, reply: Reply) -> None:
        """Handle a reply to a hello, or log a late reply."""
        if reply.request.kind == "hello":
            self.registry.admit(reply.node, reply.answer)
        elif reply.answer.kind == "done":
            what = f"round {reply.request.facts['round']}" if reply.request.kind == "train" else reply.request.kind
            self.registry.log(f"device {self.registry.nodes.get(reply.node)} answered {what} too late; not used")

    def request(
        self, kind: str, experiment: TrainingSetup, state: State, device: int, bodies: Mapping[str, bytes] | None = None
    ) -> Packet:
        """A request to a device with its parameters: the shared ones and its task's."""
        task = self.registry.task_of[device]
        wanted = vector_lengths(experiment.clients.layout, task)
        held = vectors(state)
        values = {"global": held["global"][0], "task": held["task"][task, : wanted["task"]]}
        facts = {
            "run": self.run,
            "round": state.round + 1,
            "counted": int(state.devices.own.updates[device]),
            "agreement": self.registry.agreements[task],
            "seconds": self.terms.deadline_seconds,
        }
        if kind == "train" and self.silence_records is not None:
            facts["silence"] = self.silence_records.fact(device, state.round)
        sent = {name: value.contiguous().numpy().tobytes() for name, value in values.items() if len(value)}
        return Packet(kind, facts, {**sent, **(bodies or {})})

    def rate(self, experiment: TrainingSetup, state: State, number: int, split_name: Which) -> Score | None:
        """A task's score, or None if no device answered.

        The server computes it unless devices have parameters of their own. In that case devices receive prompts without
        labels and return classes or texts, which are scored here.
        """
        if experiment.clients.layout.size("device") == 0:
            return simulate_score(experiment, state, number, split_name)
        task = experiment.tasks[number]
        split = task.dev if split_name == "dev" else task.test
        ids = [token for sample in split.prompts for token in sample.ids]
        bodies = {"ids": packed_integers(ids), "lengths": packed_integers([len(s.ids) for s in split.prompts])}
        connected = {node: k for node, k in self.assemble().items() if self.registry.task_of[k] == number}
        requests = {node: self.request("answer", experiment, state, k, bodies) for node, k in connected.items()}
        self.mailbox.send(requests, self.terms.ttl)
        scores, weights = [], []
        for reply in self.answers(requests):
            try:
                scores.append(score_answers(answers_of(reply.answer, len(split.prompts), task), split, task))
                weights.append(self.registry.samples[connected[reply.node]])
            except UserError as error:
                self.registry.log(f"device {connected[reply.node]} cannot be scored: {error}")
        return mean_score(scores, weights) if scores else None

    def finish(self, experiment: TrainingSetup, state: State) -> None:
        """Ask every connected device to export its model to its own disk."""
        connected = self.free()
        requests = {node: self.request("finish", experiment, state, device) for node, device in connected.items()}
        self.mailbox.send(requests, self.terms.ttl)
        for reply in self.answers(requests):
            done = reply.answer.kind == "done"
            text = "exported its adapter" if done else f"could not export its adapter: {refusal_reason(reply.answer)}"
            self.registry.log(f"device {connected[reply.node]} {text}")
