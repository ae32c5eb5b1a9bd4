"""What a running workflow tells its caller. Doors (command line, notebook, server) decide how to show it; workflows never print."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One sentence the user should read.

    Attributes:
        text: The sentence.
        is_warning: True where something may be wrong.
        member: Of the bank, from 0, where it is about one member; of a run by itself, which has no other, doors need not say it.
    """

    text: str
    is_warning: bool = False
    member: int | None = None


@dataclass(frozen=True)
class Progress:
    """A phase moves on.

    Attributes:
        phase: What is done, such as `reading`, `tokenising` or `scoring test`; doors show it as it is.
        done: Items done.
        total: Items in all, or None where unknown.
    """

    phase: str
    done: int
    total: int | None


@dataclass(frozen=True)
class StepDone:
    """An optimiser step is done.

    Attributes:
        step: Steps done, from 1.
        total_steps: Steps planned.
        epoch: Fraction of passes done.
        loss: Mean training loss of the step.
        learning_rate: Rate used.
        grad_norm: Norm before clipping.
        samples_per_second: Of all members together, since the last such event.
        seconds: Training seconds so far, evaluation left out.
        member: Of the bank, from 0.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    samples_per_second: float
    seconds: float
    member: int = 0


@dataclass(frozen=True)
class Evaluated:
    """The validation split was scored during training.

    Attributes:
        step: Steps done.
        epoch: Fraction of passes done.
        loss: Validation loss (cross-entropy, no smoothing).
        accuracy: Validation accuracy in [0, 1].
        macro_f1: Validation macro-F1 in [0, 1].
        train_loss: Mean training loss since the last evaluation.
        is_best: True where this is the best score so far.
        seconds: Training seconds so far, evaluation left out.
        member: Of the bank, from 0.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    macro_f1: float
    train_loss: float
    is_best: bool
    seconds: float
    member: int = 0


Event = Note | Progress | StepDone | Evaluated
EventSink = Callable[[Event], None]


def under(name: str, sentence: str) -> str:
    """A sentence about one of several: `Member 3: the classifier has collapsed`."""
    return f"{name}: {sentence[0].lower()}{sentence[1:]}"


def ignore(_event: Event) -> None:
    """The sink that shows nothing."""
