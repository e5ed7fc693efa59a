"""What a checkpoint of a run holds, and going on from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from domainclip.data.step_plan import StepPlan
from domainclip.errors import CheckpointError
from domainclip.events import CheckpointSaved, Noted
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.io import load_training_state, training_state
from domainclip.training.checkpoint import CheckpointStore, random_state, recover_directory, restore_random_state
from domainclip.training.identity import RunIdentity, check_same_run
from domainclip.training.state import Stateful, TrainContext


class TrainedWeights:
    """The weights that training changes, as a part of a checkpoint.

    Args:
        encoder: Whose weights they are.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder

    def state_dict(self) -> dict[str, Any]:
        """Collect the weights.

        Returns:
            Trained parameters, and all buffers, by name.
        """
        return training_state(self.encoder)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back.

        Args:
            state: From ``state_dict``.
        """
        load_training_state(self.encoder, state)


class Checkpointer:
    """Saves and restores the parts of a training: a checkpoint is the state of each by its name.

    Args:
        context: Of the training.
        store: Where the checkpoints are.
        identity: Of the run: a checkpoint of another one is refused.
        shared: Parts by name that are alike in all processes. They are restored in this order, after the others.
        own: Parts by name that each process has for itself, besides its random numbers.
        seed: From which a process draws new random numbers, where the checkpoint is of another number of processes.
        device: Whose random numbers are saved.
        plan: Of the steps of the run.
        accept_changed_data: Whether a checkpoint of other training rows is taken.
        model_name: For messages.
    """

    def __init__(
        self,
        context: TrainContext,
        store: CheckpointStore,
        identity: RunIdentity,
        shared: Mapping[str, Stateful],
        own: Mapping[str, Stateful],
        *,
        seed: int,
        device: torch.device,
        plan: StepPlan,
        model_name: str,
        accept_changed_data: bool = False,
    ) -> None:
        self.context, self.store, self.identity, self.shared, self.own = context, store, identity, shared, own
        self.seed, self.device, self.plan, self.model_name = seed, device, plan, model_name
        self.accept_changed_data, self.threads = accept_changed_data, torch.get_num_threads()

    def check_processes(self) -> None:
        """Have all processes compare what they train, and from which step on.

        Raises:
            ConfigurationError: They differ.
        """
        check_same_run(self.context.processes.gather_objects(self.identity.facts(self.context.state.step)))

    def save(self, must_succeed: bool) -> None:
        """Write a checkpoint of the present step. Each of several processes must ask: each has a state of its own.

        Args:
            must_succeed: Otherwise a checkpoint that cannot be written is a warning, and training goes on.

        Raises:
            CheckpointError: It ``must_succeed`` and could not be written.
        """
        context, state = self.context, self.context.state
        for images in context.processes.gather_objects(state.skipped_images):
            state.skipped_images |= images
        own = {name: part.state_dict() for name, part in self.own.items()} | {"random": random_state(self.device)}
        content = {
            "identity": self.identity.state_dict(),
            "threads": self.threads,
            **{name: part.state_dict() for name, part in self.shared.items()},
            "processes": context.processes.gather_objects(own),
            "listeners": {name: listener.state_dict() for name, listener in context.listeners.items()},
        }

        def write() -> None:
            try:
                path = self.store.save(state.step, content, state.best_files)
            except CheckpointError as error:
                if must_succeed:
                    raise
                context.warn(f"{error}. Training goes on")
            else:
                context.emitter.emit(CheckpointSaved(step=state.step, path=str(path)))

        context.processes.on_first(write)

    def restore(self) -> int:
        """Continue from the newest whole checkpoint.

        Returns:
            The step it is of, 0 where there is none.

        Raises:
            CheckpointError: It is of another recipe or of other rows, or every checkpoint is damaged.
        """
        context, processes = self.context, self.context.processes
        processes.on_first(lambda: recover_directory(self.store.best))
        found = self.store.load_latest()
        if found is None:
            self._report(0, f"No checkpoint in {self.store.folder}: starting at the first step")
            return 0
        content, checkpoint, problems = found
        known = content["identity"]
        self.identity.check(known, context.folder, self.model_name, self.accept_changed_data)
        lengthened = self._check_length(known, checkpoint.step)
        processes.gather_objects(checkpoint.step)  # all have read where the best weights are
        processes.on_first(lambda: self.store.put_back_best(checkpoint))
        as_before = len(content["processes"]) == processes.world_size
        own = content["processes"][processes.rank if as_before else 0]
        for name, part in self.own.items():
            if own[name] is not None:
                part.load_state_dict(own[name])
        other_rows = known["data"] != self.identity.data
        for name, part in self.shared.items():
            if not (other_rows and name == "sampler"):  # its hard negatives are rows of before
                part.load_state_dict(content[name])
        if other_rows:  # an epoch may have another number of batches now
            context.state.epoch, context.state.batch = self.plan.batch_schedule.position(checkpoint.step)
        if lengthened:
            context.warn(lengthened)
            context.state.without_gain = 0  # who wants more steps does not want them ended by those before
        if self.device.type == "cpu" and content.get("threads", self.threads) != self.threads:
            context.warn(
                f"The run was trained by {content['threads']} threads until step {checkpoint.step}, and by "
                f"{self.threads} from there on: sums over another number of threads are rounded otherwise, so that it "
                "does not end with the very weights of an undisturbed run (OMP_NUM_THREADS sets their number)"
            )
        for name, listener in context.listeners.items():
            listener.load_state_dict(content.get("listeners", {}).get(name))
        if as_before:
            restore_random_state(own["random"], self.device)
        else:
            torch.manual_seed(self.seed + processes.rank + 1_000_003 * checkpoint.step)
            context.warn(
                f"The checkpoint is of a run in {len(content['processes'])} processes, this one has "
                f"{processes.world_size}: dropout draws other numbers from here on, the batches stay the same"
            )
        for problem in problems:
            context.warn(f"{problem}; used {checkpoint.path.name} instead")
        self._report(checkpoint.step, f"Resumed at step {checkpoint.step} of {self.plan.total_steps}")
        return checkpoint.step

    def _check_length(self, known: dict[str, Any], step: int) -> str:
        """What there is to say of a run that has another length now; empty where it has the same."""
        changed = self.identity.lengthened(known)
        if not changed:
            return ""
        now = ", ".join(f"{key}={self.identity.settings.get(key)}" for key in changed)
        before = ", ".join(f"{key}={known['settings'].get(key)}" for key in changed)
        if self.plan.total_steps < step:
            raise CheckpointError(
                f"{now} asks for {self.plan.total_steps} steps, and the run in {self.context.folder} has made {step} "
                f"already: ask for more, or leave {' and '.join(changed)} out"
            )
        return (
            f"The run goes on with {now} in place of {before}. From step {step} on its rates follow the schedule of "
            f"{self.plan.total_steps} steps, so that it ends elsewhere than a run that was planned so from its start"
        )

    def _report(self, step: int, text: str) -> None:
        self.context.emitter.emit(Noted(name="resumed", step=step, text=text))
