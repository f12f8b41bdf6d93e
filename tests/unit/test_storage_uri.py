"""A storage's URI stands in study.yaml and in the report: what may be a credential is refused, and never shown."""

import pytest

from rlheals_ray.config import InputError
from rlheals_ray.storage import StudyFiles
from rlheals_ray.storage_uri import refuse_credentials


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://key:hidden@bucket/runs", "a user or password"),
        ("s3://hidden@bucket/runs", "a user or password"),
        ("gs://hidden@bucket/runs", "a user or password"),
        ("abfs://account:hidden@container/runs", "a user or password"),
        ("abfs://account%3Ahidden@container/runs", "a user or password"),
        ("hdfs://user:hidden@host:8020/runs", "a user or password"),
        ("sftp://user:hidden@host/runs", "a user or password"),
        ("simplecache::s3://key:hidden@bucket/runs", "a user or password"),
        ("abfs://container@account.dfs.core.windows.net/runs?sv=2024-01-01&sig=hidden", "'sv'"),
        ("abfs://container/runs?client_id=a&tenant_id=b&client_secret=hidden", "'tenant_id'"),
        ("abfs://container/runs?client_secret=hidden", "'client_secret'"),
        ("s3://bucket/runs?region=a&access_key=hidden", "'access_key'"),
        ("s3://bucket/runs?secret%5Fkey=hidden", "'secret%5Fkey'"),
        ("s3://bucket/runs?hidden", "an option without a value"),
        ("s3://bucket/runs?endpoint_override=user:hidden@host", "'endpoint_override'"),
        ("s3://bucket?token=hidden", "'token'"),
        ("memory://a/runs?password=hidden", "'password'"),
    ],
)
def test_what_may_be_a_credential_is_refused_and_not_told(uri: str, told: str) -> None:
    for refused in (refuse_credentials, lambda where: StudyFiles.at(where, "mine")):
        with pytest.raises(InputError, match=r"storage.*credentials by the environment") as caught:
            refused(uri)
        assert told in str(caught.value) and "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs",
        "s3://bucket/runs?region=eu-west-1&endpoint_override=http%3A%2F%2Flocalhost%3A9000&scheme=http",
        "s3://bucket/a@b/runs",
        "gs://anonymous@bucket/runs?retry_limit_seconds=30",
        "abfs://container@account.dfs.core.windows.net/runs",
        "abfss://container@account.dfs.core.windows.net/runs?enable_tls=true&credential_kind=cli",
        "hdfs://user@host:8020/runs?replication=2",
        "memory://a/runs",
        "s3://[x",
    ],
)
def test_what_is_none_passes(uri: str) -> None:
    refuse_credentials(uri)
