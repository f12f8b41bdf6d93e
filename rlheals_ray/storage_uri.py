"""What a storage's URI may hold: it stands in study.yaml and in the report, so no credentials."""

from __future__ import annotations

from urllib.parse import unquote

from rlheals_ray.config import InputError

_NAMED = frozenset({"abfs", "abfss", "hdfs"})
"""Schemes with a container or a user, which is no secret, before the '@'."""
_OPTIONS = frozenset(
    {
        # S3
        "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "endpoint_override", "region", "scheme",
        "smart_defaults", "tls_ca_dir_path", "tls_ca_file_path", "tls_verify_certificates",
        # Google Cloud
        "project_id", "retry_limit_seconds",
        # Azure; client_id alone names a managed identity
        "background_writes", "blob_storage_authority", "client_id", "credential_kind", "dfs_storage_authority",
        "enable_tls",
        # HDFS
        "buffer_size", "default_block_size", "replication", "user",
    }
)  # fmt: skip
"""Of pyarrow's filesystems, those that are no credentials. A key of Azure's shared access is a query of many others."""


def refuse_credentials(storage: str) -> None:
    """Raises InputError, which names no value, for a URI with a password in it, or what may be one."""
    for uri in storage.split("::"):  # fsspec's chains
        scheme, _, rest = uri.partition("://")
        place, _, query = rest.partition("?")
        user, at, _ = place.partition("/")[0].rpartition("@")
        anonymous = scheme in ("gs", "gcs") and user == "anonymous"
        if at and (":" in unquote(user) or not (scheme in _NAMED or anonymous)):
            raise _refusal(scheme, "a user or password before '@'", "leave it out")
        for option in filter(None, query.split("&")):
            key, given, value = option.partition("=")
            if unquote(key) not in _OPTIONS or "@" in unquote(value):
                what = f"the option {key!r}" if given else "an option without a value"
                raise _refusal(scheme, what, f"leave it out (options may be {', '.join(sorted(_OPTIONS))})")


def _refusal(scheme: str, what: str, remedy: str) -> InputError:
    return InputError(
        f"storage (got {scheme!r} with {what}): it would stand in study.yaml; {remedy} and give the credentials by the "
        "environment, as the filesystem's own tools do."
    )
