"""Names and format versions of everything in a run folder and an adapter folder."""

from dataclasses import dataclass
from pathlib import Path

RECORD_VERSION = 1
ADAPTER_VERSION = 1
CHECKPOINT_VERSION = 1
ESTIMATOR_VERSION = 1

MANIFEST = "lorabel.json"
OWN_WEIGHTS = "lorabel_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
ESTIMATOR = "estimator.json"
# Records of folders that hold runs: sweeps and seeds, comparisons, ablations, comparisons by size.
HOLDERS = ("sweep.json", "compare.json", "ablate.json", "sizes.json")


@dataclass(frozen=True)
class RunLayout:
    """Where things lie in a run folder.

    Attributes:
        root: The run folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Resolved settings; `train --config` takes them back."""
        return self.root / "config.yaml"

    @property
    def record(self) -> Path:
        """The record of the run."""
        return self.root / "record.json"

    @property
    def history(self) -> Path:
        """What happened step by step."""
        return self.root / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """PNG and SVG figures."""
        return self.root / "figures"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Resumable state; removed when the run is finished."""
        return self.root / "checkpoints"

    @property
    def trackers(self) -> Path:
        """What experiment trackers keep of the run."""
        return self.root / "trackers"

    @property
    def held_out(self) -> Path:
        """Cross-validation: probabilities of the training rows that this run did not see."""
        return self.predictions / "held_out.parquet"

    @property
    def lock(self) -> Path:
        """Held while a process writes to the run."""
        return self.root / ".lock"

    @property
    def predictions(self) -> Path:
        """Probabilities of the evaluated splits, one file each."""
        return self.root / "predictions"

    def probabilities(self, split: str) -> Path:
        """Probabilities of one scored split, with its labels."""
        return self.predictions / f"{split}.npz"
