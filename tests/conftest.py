"""Shared fixtures: no network, one thread, tiny encoders of every family built on the spot."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_socket
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# How long an example takes to draw says something of the machine, nothing of the code.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LORABEL_DATA", ROOT.parent / "shared" / "data"))
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
WORDS = [
    "the",
    "team",
    "won",
    "match",
    "shares",
    "fell",
    "bank",
    "rates",
    "storm",
    "hit",
    "coast",
    "new",
    "chip",
    "study",
    "finds",
    "##s",
    "a",
    ",",
    ".",
    "!",
    "na",
    "1",
]


def pytest_runtest_setup(item: pytest.Item) -> None:
    pytest_socket.disable_socket(allow_unix_socket=True)
    if item.get_closest_marker("data") and not DATA.is_dir():
        pytest.skip(f"the real data sets are not here: {DATA} (set LORABEL_DATA)")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA GPU here")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of modules are made before those of tests, and must not fill or read the user's cache either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORABEL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _quiet_world() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def dies_on_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, int], None]:
    """Make a function of a module end the process, as far as the code can tell, when it is called for the nth time."""

    def arm(owner: object, name: str, call: int) -> None:
        real, calls = getattr(owner, name), []

        def dies(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(owner, name, dies)

    return arm


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Words of a command line, run in this process -> exit code, standard output, standard error."""
    from lorabel.cli.main import main

    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(caught.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return DATA


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny random checkpoint of a family: 2 layers, width 32, 4 heads, and a WordPiece tokenizer."""
    made: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in made:
            made[family] = _save_tiny(family, tmp_path_factory.mktemp(f"encoder-{family}"))
        return made[family]

    return build


def reference_model(family: str, classes: int = 3, seed: int = 0):
    """A tiny random sequence-classification model of the reference library; every parameter non-zero."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    common = {"vocab_size": 60, "num_labels": classes, "max_position_embeddings": 48}
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    options = {
        "bert": bert,
        "roberta": {**bert, "pad_token_id": 1, "type_vocab_size": 1},
        "xlm-roberta": {**bert, "pad_token_id": 1, "type_vocab_size": 1},
        "camembert": {**bert, "pad_token_id": 1, "type_vocab_size": 1},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "electra": {**bert, "embedding_size": 16},
    }[family]
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **common, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if name.lower().endswith("norm.weight"):
                parameter += 1
    return model.eval()


def _save_tiny(family: str, folder: Path) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    reference = reference_model(family)
    reference.save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if reference.config.pad_token_id == 1:
        special[:2] = special[1::-1]  # The reference library counts positions over what is not padding, so no word may have that id.
    letters = [chr(code) for code in range(ord("a"), ord("a") + 14)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *WORDS, *letters]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    # Baked in, as in real checkpoints: our loader must switch both off.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def news_table(tmp_path: Path) -> Path:
    """A folder of splits with three classes that a tiny encoder can learn."""
    texts = {"sport": "the team won the match", "money": "bank shares fell , rates hit", "science": "new study finds a chip"}
    folder = tmp_path / "news"
    folder.mkdir()
    for split, rows in (("train", 48), ("validation", 12), ("test", 12)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for index in range(rows):
                label = list(texts)[index % 3]
                extra = " ".join(WORDS[(index * 7 + shift) % 15] for shift in range(index % 5))
                file.write(json.dumps({"text": f"{texts[label]} {extra} {split} {index}", "label": label}) + "\n")
    return folder
