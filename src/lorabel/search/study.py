"""A search through Optuna: asked for as many trials as a bank holds, told what came of them.

Decisions:
- The study is in SQLite beside the sweep unless another storage is named, so that a stopped search goes on and other tools can read it.
- The sampler is made anew for every bank, seeded by (seed, bank): what it draws depends on the finished trials alone, so a search that was killed goes on as if it had not been.
- Trials of one bank are drawn together, without knowing each other's results; larger banks are faster and learn in larger strides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorabel.errors import ConfigError, MissingExtraError
from lorabel.search.space import Assignment, Distribution

SamplerName = Literal["tpe", "random"]
# That of sweeps recorded before they had one of their own.
FIRST_NAME = "lorabel"
# Which member of the sweep a trial is, kept with the trial.
_MEMBER = "member"


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial.

    Attributes:
        score: Validation score to be maximised; None where it failed.
        parameters: Trainable parameters.
    """

    score: float | None
    parameters: int


class Study:
    """A search space with its history.

    Args:
        storage: An Optuna storage URL, such as `sqlite:///sweep/study.db`.
        space: Setting -> distribution.
        sampler: `tpe` or `random`.
        seed: Of the sampler.
        has_two_objectives: Fewer parameters count as well as a better score.
        name: Of the study in its storage, where other sweeps may have theirs.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: The storage cannot be opened, or holds a study of another space.
    """

    def __init__(
        self, storage: str, space: Mapping[str, Distribution], sampler: SamplerName, seed: int, has_two_objectives: bool, name: str = FIRST_NAME
    ) -> None:
        self._optuna = optuna_library()
        self._space = {name: self._distribution(distribution) for name, distribution in space.items()}
        self._sampler, self._seed, self._has_two = sampler, seed, has_two_objectives
        try:
            self._study = self._optuna.create_study(
                study_name=name, storage=storage, load_if_exists=True, directions=["maximize", "minimize"] if has_two_objectives else ["maximize"]
            )
        except Exception as error:  # Each storage has exceptions of its own.
            raise ConfigError(
                f"--storage: cannot be opened, got {storage!r} ({type(error).__name__}: {error}); expected an Optuna storage URL. Leave it out for SQLite beside the sweep."
            ) from error
        self._check_space(storage)

    def _check_space(self, storage: str) -> None:
        """Refuse a study that was filled from another space: its trials would say nothing of this one, and Optuna draws no more for it."""
        trials = self._study.get_trials(deepcopy=False)
        others = [name for trial in trials for name in {*trial.distributions, *self._space} if trial.distributions.get(name) != self._space.get(name)]
        if others or len(self._study.directions) != 1 + self._has_two:
            raise ConfigError(
                f"--storage: holds a study of another space, got {storage!r} with {self._study.study_name!r}"
                + (f", which differs in {sorted(others)[0]}" if others else "")
                + "; expected one of the same space and objectives. Give another storage, or leave it out for SQLite beside the sweep."
            )

    def ask(self, first_member: int, count: int) -> list[Assignment]:
        """Draw trials for the members from `first_member` on.

        Args:
            first_member: Number of the first; keys the sampler's seed.
            count: How many.
        """
        samplers = self._optuna.samplers
        seed = (self._seed * 1_000_003 + first_member) % 2**32
        self._study.sampler = samplers.TPESampler(seed=seed, constant_liar=True) if self._sampler == "tpe" else samplers.RandomSampler(seed=seed)
        drawn = []
        for number in range(first_member, first_member + count):
            trial = self._study.ask(fixed_distributions=self._space)
            trial.set_user_attr(_MEMBER, number)
            drawn.append({name: _decoded(self._space[name], value) for name, value in trial.params.items()})
        return drawn

    def drop_unfinished(self, members: Sequence[int]) -> None:
        """Mark trials that were drawn but never recorded as failed: a run that was killed between drawing and recording left them.

        Args:
            members: Numbers of the recorded members.
        """
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == self._optuna.trial.TrialState.RUNNING and trial.user_attrs.get(_MEMBER) not in members:
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def tell(self, results: Mapping[int, TrialResult]) -> None:
        """Record what came of trials; those told before are left alone.

        Args:
            results: Member -> result.
        """
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False):
            result = results.get(trial.user_attrs.get(_MEMBER, -1))
            if result is None or trial.state != states.RUNNING:
                continue
            if result.score is None:
                self._study.tell(trial.number, state=states.FAIL)
            else:
                self._study.tell(trial.number, [result.score, result.parameters] if self._has_two else result.score)

    def _distribution(self, one: Distribution) -> Any:
        kinds = self._optuna.distributions
        if one.kind == "choice":
            return kinds.CategoricalDistribution([_encoded(value) for value in one.choices])
        if one.kind == "int":
            return kinds.IntDistribution(int(one.low), int(one.high), step=one.step)
        return kinds.FloatDistribution(one.low, one.high, log=one.kind == "loguniform")


def _encoded(value: Any) -> Any:
    """Lists as JSON: a storage takes plain values alone."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _decoded(distribution: Any, value: Any) -> Any:
    if not hasattr(distribution, "choices") or not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    return json.loads(value)


def optuna_library() -> Any:
    """Optuna, quiet.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(
            "--search: Optuna is not installed, got no module of that name; expected the extra. pip install 'lorabel[sweep]', or use --grid."
        ) from error
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


def importances(assignments: Sequence[Assignment], scores: Sequence[float], names: Sequence[str]) -> dict[str, float] | None:
    """How much of the differences in score each setting explains (fANOVA: Hutter et al. 2014).

    Args:
        assignments: Of the finished members.
        scores: Theirs.
        names: Settings that vary.

    Returns:
        Setting -> share, adding up to 1, largest first; None where Optuna is missing, or there are too few results or no differences to tell.
    """
    try:
        optuna = optuna_library()
    except MissingExtraError:
        return None
    if len(scores) < 4 or len(set(scores)) < 2:
        return None
    kinds = optuna.distributions
    study = optuna.create_study(direction="maximize")
    values = {name: [assignment[name] for assignment in assignments] for name in names}
    for index, score in enumerate(scores):
        params: dict[str, Any] = {}
        distributions: dict[str, Any] = {}
        for name, column in values.items():
            if all(isinstance(value, float | int) and not isinstance(value, bool) for value in column) and len(set(column)) > 2:
                params[name], distributions[name] = float(column[index]), kinds.FloatDistribution(float(min(column)), float(max(column)))
            else:
                texts = [json.dumps(value, default=str) for value in column]
                params[name], distributions[name] = texts[index], kinds.CategoricalDistribution(sorted(set(texts)))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    return found
