"""Every error a person may meet, as one tree. A message says what was wrong, the value, and what to do.

    SaeflowError
    ├── InputError            something a person gave: a path, a layer, a key, a setting
    │   ├── SpecError         a setting that is unknown, out of range, or has no stable form for hashing
    │   └── NotHereError      a name that is looked up elsewhere, which cannot be reached now
    ├── StoreError            the store cannot be reached, refuses, or is full
    ├── ArtifactError         what the store holds is not what its manifest says
    ├── LeaseLost             another driver has taken over this key's progress
    ├── ClusterError          Ray could not be started or reached, or an actor keeps dying
    ├── ServiceError          the labelling service refuses or stays away
    └── StageFailed           a stage ended without an artifact
        └── ShardsFailed      some shards of a stage did, each with its own cause
"""


class SaeflowError(Exception):
    """Base of all errors that saeflow raises on purpose; the command line prints them without a traceback."""


class InputError(SaeflowError):
    """Something a person gave cannot be used: it names the value and what to do instead."""


class SpecError(InputError):
    """A setting is unknown, out of range, or has no stable form to be hashed."""


class NotHereError(InputError):
    """What a name stands for is not on this machine, and where it would be looked up cannot be reached now."""


class StoreError(SaeflowError):
    """The store cannot be reached, refuses the credentials, or is full."""


class ArtifactError(SaeflowError):
    """Data in the store differs from what its manifest promises (size, sha256, or structure)."""


class LeaseLost(SaeflowError):
    """Another driver holds this key's progress now; this one must stop writing to it."""


class ClusterError(SaeflowError):
    """Ray could not be started or reached, or work on it keeps failing."""


class ServiceError(SaeflowError):
    """The labelling service refuses the request or cannot be reached."""


class StageFailed(SaeflowError):
    """A stage ended without an artifact."""


class ShardsFailed(StageFailed):
    """Some shards failed; the message lists each with its own cause.

    `failures` maps a shard's label ("capture 3 of 8") to the exception that ended it.
    """

    def __init__(self, failures: dict[str, BaseException], total: int) -> None:
        self.failures = failures
        causes = "\n".join(f"  {label}: {type(error).__name__}: {error}" for label, error in sorted(failures.items()))
        super().__init__(
            f"{len(failures)} of {total} shards failed; the others are kept, run the same command again to go on:\n"
            f"{causes}"
        )
