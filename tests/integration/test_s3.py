"""Logs, samples and Delta tables on a real S3 server: URIs with options, credentials and unusual keys."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import s3
from deltalake import DeltaTable, write_deltalake
from session_logs import for_delta

from recfuse.config import InvalidFieldError
from recfuse.evaluation.evaluate import evaluate
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.samples import SampleSet
from recfuse.logs.config import IngestConfig
from recfuse.logs.ingest import ingest
from recfuse.logs.reading import open_samples, read_log, read_samples
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.report.config import ReportConfig
from recfuse.runtime.locations import Location, locate
from tests.unit.evaluation.test_evaluate import VOCABULARY, table

# As a URI writes them; `%25` is a percent sign, `%3F` a question mark.
KEYS = ["plain", "with space", "50%2520off", "100%25", "what%3F", "a#b", "dt=2024-05-01", "größe-日本", "a&b+c"]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """Key → URI of it, with credentials of its own in place of the environment's."""
    with s3.serving(tmp_path_factory.mktemp("s3") / "server.log") as options, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield lambda key: f"s3://key:word@{s3.BUCKET}/{key}{options}"


def write(place: Location, rows: pa.Table) -> None:
    put(place, VOCABULARY)
    with place.filesystem.open_output_stream(place.below("dt=a b/0.parquet").root) as stream:
        pq.write_table(rows, stream)


def put(place: Location, vocabulary) -> None:
    import yaml

    with place.filesystem.open_output_stream(place.below(VOCABULARY_FILE).root) as stream:
        stream.write(yaml.safe_dump(vocabulary.to_dict()).encode())


@pytest.mark.parametrize("key", KEYS)
def test_a_log_is_read_wherever_it_lies(uri, key):
    place = locate(uri(f"read/{key}"))
    write(place, table(users=10))
    rows = read_log(uri(f"read/{key}"))
    assert (rows.account.kept, rows.account.quarantined) == (40, {})
    assert rows.source.table.kind("dt=a b/0.parquet") == pafs.FileType.File
    # What is beneath and above a place is found by its URI too.
    assert locate(place.below("dt=a b").uri).root == f"{place.root}/dt=a b"
    assert locate(place.below("50%20?").uri).root == f"{place.root}/50%20?"
    assert place.below("x").above.uri == place.uri


@pytest.mark.parametrize("key", ["plain", "with space", "größe-日本", "a#b"])
def test_a_delta_table_is_read_through_its_log(uri, key):
    place = locate(uri(f"delta/{key}"))
    rows = table(users=10)
    for part, mode in ((rows, "append"), (rows.slice(8), "overwrite")):
        write_deltalake(place.delta_uri, for_delta(part), mode=mode, storage_options=place.delta_options)
    put(place, VOCABULARY)
    assert DeltaTable(place.delta_uri, storage_options=place.delta_options).version() == 1
    assert place.kind("_delta_log/00000000000000000001.json") == pafs.FileType.File
    read = read_log(uri(f"delta/{key}"))
    assert read.account.kept == 32
    assert len(read.source.files) == 1


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("key", ["a b%2520größe-日本"])
def test_ingest_resumes_and_its_samples_are_opened(uri, key):
    write(locate(uri(f"{key}/log")), table())
    config = IngestConfig(logs=uri(f"{key}/log"), output=uri(f"{key}/samples"))
    first, again = ingest(config), ingest(config)
    assert (first.account.kept, first.resumed, again.resumed) == (600, False, True)
    assert again.fingerprint == first.fingerprint
    source = open_samples(uri(f"{key}/samples"))
    assert sum(part.num_rows for part in read_samples(source)) == 600
    assert SampleSet.open(uri(f"{key}/samples")).rows == 600
    account = source.location.below("account.json")
    with account.filesystem.open_input_stream(account.root) as stream:
        assert b"key:word" not in stream.read()
    # Another log into the same output replaces what ingest wrote, and nothing else.
    write(locate(uri(f"{key}/log")), table(users=20))
    assert ingest(config).account.kept == 80
    foreign = locate(uri(f"{key}/samples")).below("mine.txt")
    with foreign.filesystem.open_output_stream(foreign.root) as stream:
        stream.write(b"mine")
    write(locate(uri(f"{key}/log")), table(users=30))
    with pytest.raises(InvalidFieldError, match=r"mine\.txt.*nothing in s3://…@logs/") as error:
        ingest(config)
    assert "word" not in str(error.value)


@pytest.mark.usefixtures("local_ray")
def test_evaluate_reads_it_in_memory_and_streaming(uri, tmp_path):
    write(locate(uri("evaluate/held out")), table())
    bundle = export_policy(tmp_path / "fusion", FixedGaussian([.3, .3], .5), VOCABULARY, training={},
                           data_fingerprint="", metrics={})
    none = str(tmp_path / "none")
    config = ReportConfig(fusion=str(bundle), holdout=uri("evaluate/held out"), samples="", scenes=none,
                          output=str(tmp_path / "report"), simulation=none, ab_test=none, serving=none)
    plain, streamed = evaluate(config).off_policy, evaluate(config.replace(streaming=True)).off_policy
    assert (plain.requests, streamed.requests) == (600, 600)
    assert streamed.estimate == pytest.approx(plain.estimate, rel=1e-5)


@pytest.mark.parametrize("key", ["nothing", "no key"])
def test_errors_show_no_secrets(uri, key):
    for read in (read_log, open_samples, SampleSet.open):
        with pytest.raises(InvalidFieldError, match=r"got 's3://…@logs/.*a directory that exists") as error:
            read(uri(key))
        assert "word" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_table_that_cannot_be_read_shows_no_secrets(uri):
    place = locate(uri("broken"))
    with place.filesystem.open_output_stream(place.below("_delta_log/00000000000000000000.json").root) as stream:
        stream.write(b"{")
    put(place, VOCABULARY)
    with pytest.raises(InvalidFieldError, match=r"got 's3://…@logs/broken.*a Delta table that can be read") as error:
        read_log(uri("broken"))
    assert "word" not in str(error.value)
