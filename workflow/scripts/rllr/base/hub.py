"""A published model from the Hugging Face hub, through its cache: nothing is downloaded twice."""

import os
import shutil
from pathlib import Path

from rllr.cli import UserError, log
from rllr.lm.budget import gib

# Besides one set of weights. Python files are left out: no published code is ever run.
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # in the order of preference


def fetch(base: dict) -> tuple[Path, str]:
    """Download what is missing of `base['id']` at `base['revision']`; HF_TOKEN opens gated models.

    Without a network, and with HF_HUB_OFFLINE=1, the cache alone is used.

    Returns:
        The snapshot's folder in the cache and its commit hash.

    Raises:
        UserError: no such model or revision, no access, no network and no copy, or no room on the disk.
    """
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, constants, errors, snapshot_download

    name, revision = base["id"], base["revision"]
    source = {"repo_id": name, "revision": revision}  # by this name, so that it is found again without a network
    page = f"{constants.ENDPOINT}/{name}"
    try:
        if constants.HF_HUB_OFFLINE:
            raise errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except errors.GatedRepoError:
        raise no_access(name, page) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"base.revision: {name} has no revision {revision!r}; see {page}/commits/main") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"base.id: no model {name!r} on the hub, or a private one that HF_TOKEN does not open"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"base.id: {error}") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"{page}: {str(error).splitlines()[0]}") from None
    except (OSError, errors.HTTPError) as error:  # no network
        folder = cached(source)
        if folder is None:
            raise UserError(
                f"{name}: the hub cannot be reached ({str(error).splitlines()[0]}) and its cache "
                f"{constants.HF_HUB_CACHE} holds no copy. Fetch it on a machine with a network "
                f"(hf download {name} --revision {revision}), copy the cache and set HF_HOME; "
                "or give the model's folder with base: {source: local, path: ...}"
            ) from None
        log(f"{name}: no network; using the copy in {folder}")
        return folder, folder.name

    files = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    weights = next((w for w in WEIGHTS if any(fnmatch(file, w) for file in files)), None)
    if weights is None:
        raise UserError(f"{name}: no weights in a format that can be read ({' or '.join(WEIGHTS)}); see {page}")
    patterns = [weights, *SMALL_FILES]
    wanted = {file: size for file, size in files.items() if any(fnmatch(file, pattern) for pattern in patterns)}
    check_room(name, info.sha, wanted, Path(constants.HF_HUB_CACHE))
    try:
        folder = snapshot_download(**source, allow_patterns=patterns)
    except errors.GatedRepoError:
        raise no_access(name, page) from None
    except errors.HTTPError as error:
        raise UserError(f"{page}: {str(error).splitlines()[0]}; run again to go on from there") from None
    return Path(folder), info.sha


def cached(source: dict) -> Path | None:
    """The snapshot's folder if the cache holds one with a set of weights."""
    from huggingface_hub import errors, snapshot_download

    for weights in WEIGHTS:
        try:
            folder = Path(snapshot_download(**source, allow_patterns=[weights, *SMALL_FILES], local_files_only=True))
        except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
            continue
        if any(folder.glob(weights)):
            return folder
    return None


def no_access(name: str, page: str) -> UserError:
    if os.environ.get("HF_TOKEN"):
        return UserError(f"{name} is gated and the account of HF_TOKEN has no access yet: ask for it on {page}")
    return UserError(f"{name} is gated: ask for access on {page}, then set HF_TOKEN to a token of that account")


def check_room(name: str, commit: str, files: dict[str, int], cache: Path) -> None:
    """Raise UserError if the files that the cache does not hold yet do not fit on its disk."""
    from huggingface_hub import try_to_load_from_cache

    missing = {
        file: size
        for file, size in files.items()
        if not isinstance(try_to_load_from_cache(name, file, cache_dir=cache, revision=commit), str)
    }
    existing = next(folder for folder in [cache, *cache.absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    needed = sum(missing.values())
    if needed:
        log(f"{name}: downloading {gib(needed)} to {cache}")
    if needed > free:
        raise UserError(
            f"{name}: {gib(needed)} to download, {gib(free)} free in {cache}; free some or set HF_HOME to another disk"
        )
