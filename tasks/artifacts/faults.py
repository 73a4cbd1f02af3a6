"""What the backends of a store raise, told in one sentence that names the store and what to do."""

import contextlib
import errno
from collections.abc import Iterator

from tasks.errors import StoreError


def is_remote_fault(error: Exception) -> bool:
    """Whether it comes from the libraries beneath object storage, whose errors are no OSError."""
    return type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp"))


@contextlib.contextmanager
def said(url: str, writing: bool = False) -> Iterator[None]:
    """Turns what a backend raises into one sentence that names the store and what to do."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        if not writing:
            raise
        raise StoreError(f"The store {url} does not exist ({error}); create the bucket, or check --store.") from error
    except PermissionError as error:
        raise StoreError(
            f"The store {url} refuses access ({error}); check the permissions of the folder or bucket, and for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"The store {url} is full; free space (saeflow gc) or choose another --store.") from error
        raise StoreError(f"The store {url} failed: {error}.") from error
    except Exception as error:
        if is_remote_fault(error):
            raise StoreError(
                f"The store {url} cannot be used ({type(error).__name__}: {error}); check the endpoint "
                "(AWS_ENDPOINT_URL), the network, and AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY."
            ) from error
        if isinstance(error, ImportError | ValueError):
            raise StoreError(f"The store URL {url!r} is not usable: {error}. Give a folder or s3://bucket.") from error
        raise
