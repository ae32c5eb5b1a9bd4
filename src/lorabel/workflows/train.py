"""`train`: labelled table in, run folder out.

The order is: settle and check everything, take the run folder, train, then write adapter, record, figures and report. Nothing is written before every cheap check has passed,
and the adapter folder appears only when it is complete.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import resource
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorabel._version import __version__
from lorabel.artifacts.adapter import AdapterBundle, save_adapter
from lorabel.artifacts.card import model_card
from lorabel.artifacts.checkpoints import CheckpointStore
from lorabel.artifacts.history import History
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.lock import RunLock
from lorabel.artifacts.records import RunRecord, write_record
from lorabel.artifacts.store import write_text
from lorabel.config import RunConfig
from lorabel.data.augment import sentence_shuffle
from lorabel.data.ledger import TestLedger
from lorabel.data.packing import tokenise
from lorabel.data.types import SplitName, TokenTable
from lorabel.errors import ConfigError, StoppedError
from lorabel.evaluation import EvalResult, evaluate_probabilities
from lorabel.events import Event, EventSink, Note, Progress, StepDone, ignore
from lorabel.inference.predictor import probabilities, table_logits
from lorabel.models.checkpoint import load_weights, weights_digest
from lorabel.training.estimate import estimate_seconds
from lorabel.training.loop import LoopSettings, Position, Scores, Task, train
from lorabel.training.randomness import numpy_generator
from lorabel.training.schedules import warmup_steps
from lorabel.workflows.building import Trainee, build_loss, build_trainee
from lorabel.workflows.preparation import Prepared, cache_dir, prepare
from lorabel.workflows.stopping import StopRequest, stop_on_signals
