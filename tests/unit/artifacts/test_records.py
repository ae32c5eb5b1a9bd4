"""What is not a run record is refused with the reason."""

import json

import pytest

from lorabel.artifacts.layout import RECORD_VERSION
from lorabel.artifacts.records import read_record
from lorabel.errors import ArtifactError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema_version": RECORD_VERSION}, "at run_id"),
        ({"schema_version": RECORD_VERSION + 1}, "another format"),
        ({"schema_version": str(RECORD_VERSION)}, "another format"),
        ({}, "another format, got version None"),
        ([], "not a JSON object"),
    ],
)
def test_another_shape_or_version_is_refused(content, message, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        read_record(tmp_path / "record.json")
