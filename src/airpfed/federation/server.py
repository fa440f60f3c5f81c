"""The server's part of a federation: a round's gradients from real devices, their scores and exports at the end."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger
from airpfed.devices.compression import all_bytes, sizes
from airpfed.federation.mailbox import GRACE, POLL, Letter, Post
from airpfed.federation.message import Parcel, printable
from airpfed.federation.registry import Roster
from airpfed.federation.validate import gradient_of, packed_integers, said_of, samples_told, why_of
from airpfed.model.layout import Vectors
from airpfed.training.evaluate import Score, mean_score, score_answers
from airpfed.training.experiment import Experiment, RoundGradients, simulate_score
from airpfed.training.round import Aggregator
from airpfed.training.state import State

Which = Literal["dev", "test"]


@dataclass(frozen=True)
class Terms:
    """When a round starts and ends, and which gradients are taken; `FederationSettings` says what each means."""

    min_devices: int
    wait_seconds: float
    deadline_seconds: float
    max_norm: float

    @property
    def ttl(self) -> float:
        """Seconds that a question lives: late answers are still told of in the next round."""
        return 2 * self.deadline_seconds + 2 * GRACE


@dataclass
class Federation:
    """Real devices behind Flower's grid. run: the identity under which devices keep their own state.

    aggregator_of: D_k -> the link whose weights they are. collected, when a round is under way: rows of NaN but for
    devices whose gradient was taken.
    """

    post: Post
    roster: Roster
    terms: Terms
    run: str
    aggregator_of: Callable[[Tensor], Aggregator]
    stopping: Callable[[], bool]
    aggregate: Aggregator | None = field(default=None)

    def experiment(self, made: Experiment) -> Experiment:
        """An experiment whose devices are this federation's."""
        return replace(made, collect=self.collect, evaluate_task=self.rate, aggregate=self._link)

    def _link(self, t: int, shared: Tensor, personal: Tensor, present: Tensor, correlation_statistics: Tensor) -> Any:
        assert self.aggregate is not None
        return self.aggregate(t, shared, personal, present, correlation_statistics)

    def collect(self, experiment: Experiment, state: State) -> RoundGradients:
        """A round's gradients: all devices that are there are asked, and answers count until the deadline.

        Who still works on an earlier round is not asked and not waited for: behind a question of which nobody needs the
        answer any more, it would be late again.
        """
        t, layout = state.round + 1, experiment.clients.layout
        here = self.assemble()
        questions = {node: self.question("train", experiment, state, device) for node, device in here.items()}
        down = self.post.send(questions, self.terms.ttl)
        up, devices = 0, len(self.roster.task_of)
        rows: Vectors = {s: torch.full((devices, layout.size(s)), torch.nan) for s in ("global", "task")}
        # Nobody reads the last: with it a device is absent where nothing else is sent.
        rows |= {"device": torch.zeros(devices, 0), "frozen": torch.full((devices, 1), torch.nan)}
        loss = torch.full((devices,), torch.nan, dtype=torch.float64)
        for letter in self.answers(questions):
            device = here[letter.node]
            up += letter.size
            try:
                found, loss[device] = self.taken(experiment, letter, device, t)
            except UserError as error:
                self.roster.say(f"round {t}: device {device} is absent: {error}")
                continue
            for scope, row in found.items():
                rows[scope][device] = row[0]
            rows["frozen"][device] = 0.0
        samples = torch.tensor(self.roster.samples)
        self.aggregate = self.aggregator_of(samples.double())
        cursors = t * experiment.local_training.steps * samples.clamp(max=experiment.local_training.batch_size)
        computed = all_bytes(layout, experiment.clients.task_of, experiment.payload)
        cost = Ledger(payload_bytes=computed, uplink_bytes=up, downlink_bytes=down)
        return RoundGradients(rows, loss.float(), cursors, samples.float(), cost)

    def taken(self, experiment: Experiment, letter: Letter, device: int, t: int) -> tuple[Vectors, float]:
        """A device's gradient and loss from its answer; UserError where the answer cannot be used."""
        facts = letter.answer.facts
        if letter.answer.kind != "done":
            raise UserError(why_of(letter.answer))
        run, of, by = (facts.get(name) for name in ("run", "round", "device"))
        if run != self.run or type(of) is not int or of != t:
            raise UserError(f"it answers round {printable(of, 20)} of run {printable(run, 11)}")
        if type(by) is not int or by != device:
            raise UserError(f"it answers as device {printable(by, 20)}")
        samples, task = samples_told(letter.answer), self.roster.task_of[device]
        found = gradient_of(letter.answer, experiment.clients.layout, task, experiment.payload, self.terms.max_norm)
        self.roster.samples[device] = samples
        return found

    def assemble(self) -> dict[int, int]:
        """Nodes and their devices, once enough are free; UserError if they do not come, or if the run is to stop."""
        devices = len(self.roster.task_of)
        wanted = min(self.terms.min_devices or devices, devices)
        end = time.monotonic() + self.terms.wait_seconds
        while len(here := self.free()) < wanted:
            there = f"{len(here)} of {wanted} devices are there (federation.min_devices), without {self.away(here)}"
            if self.stopping() or time.monotonic() >= end:
                raise UserError(f"{there}; go on with --resume")
            self.roster.line("waiting:", f"{there}; for {self.terms.wait_seconds:g} s at most")
            time.sleep(POLL)
        return here

    def away(self, here: Mapping[int, int]) -> str:
        """The devices that are not there or not free, the first of them by number."""
        found = [str(device) for device in range(len(self.roster.task_of)) if device not in here.values()]
        return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")

    def free(self) -> dict[int, int]:
        """Nodes that are there and owe no answer, with their devices; those not known are asked who they are."""
        for letter in self.post.receive():
            self.other(letter)
        ids, busy = set(self.post.grid.get_node_ids()), self.post.busy()
        hello = Parcel("hello", {"seconds": self.terms.deadline_seconds})
        self.post.send(dict.fromkeys(self.roster.unknown(ids - busy), hello), self.terms.ttl)
        return {node: device for node, device in self.roster.here(ids).items() if node not in busy}

    def answers(self, questions: Mapping[int, Parcel]) -> Iterator[Letter]:
        """Answers to these questions until the deadline; who did not answer is told of."""
        for letter in self.post.until(lambda: not self.post.waiting(questions), self.terms.deadline_seconds):
            if questions.get(letter.node) is letter.asked:
                yield letter
            else:
                self.other(letter)
        for node in [node for node, asked in questions.items() if self.post.waiting({node: asked})]:
            self.roster.say(
                f"device {self.roster.nodes.get(node)} did not answer ({questions[node].kind}) "
                f"within {self.terms.deadline_seconds:g} s"
            )

    def other(self, letter: Letter) -> None:
        """An answer to a greeting, or one that comes late."""
        if letter.asked.kind == "hello":
            self.roster.admit(letter.node, letter.answer)
        elif letter.answer.kind == "done":
            what = f"round {letter.asked.facts['round']}" if letter.asked.kind == "train" else letter.asked.kind
            self.roster.say(f"device {self.roster.nodes.get(letter.node)} answered {what} too late; not used")

    def question(
        self, kind: str, experiment: Experiment, state: State, device: int, bodies: Mapping[str, bytes] | None = None
    ) -> Parcel:
        """A question to a device with the parameters it works on: the shared ones, and its task's."""
        task = self.roster.task_of[device]
        wanted = sizes(experiment.clients.layout, task)
        values = {"global": state.server.shared.value[0], "task": state.server.personal.value[task, : wanted["task"]]}
        facts = {
            "run": self.run,
            "round": state.round + 1,
            "counted": int(state.devices.own.updates[device]),
            "agreement": self.roster.agreed[task],
            "seconds": self.terms.deadline_seconds,
        }
        sent = {name: value.contiguous().numpy().tobytes() for name, value in values.items() if len(value)}
        return Parcel(kind, facts, {**sent, **(bodies or {})})

    def rate(self, experiment: Experiment, state: State, number: int, which: Which) -> Score | None:
        """A task's score: here, or by its devices where each has parts of its own; None if none of them answered.

        Devices get prompts without labels and answer with classes or texts, which are scored here.
        """
        if experiment.clients.layout.size("device") == 0:
            return simulate_score(experiment, state, number, which)
        task = experiment.tasks[number]
        split = task.dev if which == "dev" else task.test
        ids = [token for sample in split.prompts for token in sample.ids]
        bodies = {"ids": packed_integers(ids), "lengths": packed_integers([len(s.ids) for s in split.prompts])}
        here = {node: k for node, k in self.assemble().items() if self.roster.task_of[k] == number}
        questions = {node: self.question("answer", experiment, state, k, bodies) for node, k in here.items()}
        self.post.send(questions, self.terms.ttl)
        scores, weights = [], []
        for letter in self.answers(questions):
            try:
                scores.append(score_answers(said_of(letter.answer, len(split.prompts), task), split, task.kind))
                weights.append(self.roster.samples[here[letter.node]])
            except UserError as error:
                self.roster.say(f"device {here[letter.node]} cannot be scored: {error}")
        return mean_score(scores, weights) if scores else None

    def finish(self, experiment: Experiment, state: State) -> None:
        """Have every device that is there export its model to its own disk."""
        here = self.free()
        questions = {node: self.question("finish", experiment, state, device) for node, device in here.items()}
        self.post.send(questions, self.terms.ttl)
        for letter in self.answers(questions):
            done = letter.answer.kind == "done"
            text = "exported its adapter" if done else f"could not export its adapter: {why_of(letter.answer)}"
            self.roster.say(f"device {here[letter.node]} {text}")
