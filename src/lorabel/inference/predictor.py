"""The predictor: texts in, probabilities out. Python, command line, evaluation and server share this one.

Decisions:
- Texts are sorted by length, longest first, and cut into batches of a token budget: batches are alike in cost, and the first one shows the largest memory.
- Results come back in the caller's order.
- How logits become labels is `answers.py`; temperature and thresholds are fitted after training, else they are 1 and one half.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lorabel.data.packing import pack, tokenise
from lorabel.data.texts import checked_texts
from lorabel.data.types import LabelMap, TokenTable
from lorabel.data.windows import WindowRule
from lorabel.events import EventSink, ignore
from lorabel.inference.answers import AnswerRule
from lorabel.models.bank import Bank
from lorabel.models.crew import crew_for_rows
from lorabel.models.states import FrozenStates, with_states

# Enough rows to fill two cores' products, few enough to stay in their caches; measured on the embedded encoder.
TOKENS_PER_BATCH = 2048
MAX_SEQUENCES_PER_BATCH = 256
_CHUNK_TEXTS = 16384


@dataclass(frozen=True)
class Prediction:
    """What is said about one text.

    Attributes:
        label: Most probable class; in a multi-label task all labels that are given, which may be none.
        score: Highest probability of any class.
        probabilities: All of them, in label order (C,).
    """

    label: str | tuple[str, ...]
    score: float
    probabilities: NDArray[np.float64]


class Predictor:
    """A classifier that is ready to answer.

    Args:
        bank: Encoder and one member.
        tokenizer: The encoder's tokenizer, truncation and padding off.
        tokenizer_digest: Its digest.
        labels: The classes.
        max_length_tokens: Longer texts are cut, or read in windows of that length.
        rule: How class scores become labels.
        windows: How longer texts are read in windows; None where they are cut.
    """

    def __init__(
        self,
        bank: Bank,
        tokenizer: Tokenizer,
        tokenizer_digest: str,
        labels: LabelMap,
        max_length_tokens: int,
        rule: AnswerRule = AnswerRule(),  # noqa: B008
        windows: WindowRule | None = None,
    ) -> None:
        self.bank = bank
        self.tokenizer = tokenizer
        self.tokenizer_digest = tokenizer_digest
        self.labels = labels
        self.max_length_tokens = max_length_tokens
        self.rule = rule
        self.windows = windows

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Class scores before temperature and softmax.

        Args:
            texts: N texts.

        Returns:
            (N, C).

        Raises:
            DataError: Not a sequence of strings.
        """
        return table_logits(self.bank, self.tokenise(checked_texts(texts, "predict")))

    def tokenise(self, texts: Sequence[str], *, cache_dir: Path | None = None, data_digest: str | None = None, on_event: EventSink = ignore) -> TokenTable:
        """Texts as this classifier reads them.

        Args:
            texts: N texts.
            cache_dir: Where to cache, or None.
            data_digest: Keys the cache; None turns it off.
            on_event: Receives progress, and a note where a damaged cache is made again.

        Returns:
            Their tokens.

        Raises:
            StorageError: The cache cannot be written.
        """
        return tokenise(
            texts,
            self.tokenizer,
            self.tokenizer_digest,
            self.max_length_tokens,
            windows=self.windows,
            cache_dir=cache_dir,
            data_digest=data_digest,
            on_event=on_event,
        )

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Class probabilities.

        Args:
            texts: N texts.

        Returns:
            (N, C), rows adding up to 1 where a text has one label.

        Raises:
            DataError: Not a sequence of strings.
        """
        texts = checked_texts(texts, "predict")  # All of them first: within a chunk rows would be counted anew.
        parts = [self.rule.probabilities(self.logits(texts[start : start + _CHUNK_TEXTS])) for start in range(0, len(texts), _CHUNK_TEXTS)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.labels)))

    def predict(self, texts: Sequence[str]) -> list[str] | list[tuple[str, ...]]:
        """Most probable class of each text; in a multi-label task all labels that are given to it.

        Args:
            texts: N texts.

        Returns:
            N class names, or N tuples of them.
        """
        return self._labels(self.predict_proba(texts))

    def explain(self, texts: Sequence[str]) -> list[Prediction]:
        """Labels, score and probabilities of each text.

        Args:
            texts: N texts.

        Returns:
            N predictions.
        """
        found = self.predict_proba(texts)
        labels: Sequence[str | tuple[str, ...]] = self._labels(found)
        return [Prediction(label, float(row.max()), row) for label, row in zip(labels, found, strict=True)]

    def _labels(self, found: NDArray[np.float64]) -> list[str] | list[tuple[str, ...]]:
        names = self.labels.names_of(self.rule.answers(found))
        return [one for (one,) in names] if self.rule.task == "single_label" else list(names)


def table_logits(bank: Bank, table: TokenTable, on_rows: Callable[[int], None] | None = None, states: FrozenStates | None = None) -> NDArray[np.float64]:
    """Class scores of tokenised texts.

    Args:
        bank: Encoder and one member.
        table: N rows.
        on_rows: Called after each batch with the number of rows done.
        states: What the frozen layers give for this table, where that is known.

    Returns:
        (N, C) in the table's order.
    """
    out = np.zeros((len(table), bank.head.classes))

    def run(rows: NDArray[np.int64]) -> int:
        with torch.inference_mode():
            batch = with_states(pack(table, rows, None, bank.encoder.shape.first_position), states).to(bank.encoder.device)
            # Packing sorts within the batch; `batch.rows` says which row each result belongs to.
            out[batch.rows] = bank.logits(batch).cpu().double().numpy()
        return len(rows)

    batches = list(length_batches(table.lengths))
    done = 0
    with crew_for_rows(len(batches), bank.encoder.device, 1) as crew:
        for count in crew.map(run, batches):
            done += count
            if on_rows is not None:
                on_rows(done)
    return out


def length_batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows sorted by length, longest first, cut at the token budget."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        count = max(1, min(MAX_SEQUENCES_PER_BATCH, TOKENS_PER_BATCH // longest))
        yield order[start : start + count]
        start += count
