"""What is wrong with the disk, in words."""

import errno

STORAGE_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "access is denied",
    errno.EPERM: "access is denied",
}


def storage_trouble(error: BaseException | str) -> str | None:
    """What is wrong with the disk, if that caused this error (or a library's message about one); otherwise None."""
    if isinstance(error, OSError) and error.errno in STORAGE_TROUBLE:
        return STORAGE_TROUBLE[error.errno] + (f": {error.filename}" if error.filename else "")
    text = str(error)
    if "No space left on device" in text or "StorageFull" in text:  # as Python and Rust say it
        return STORAGE_TROUBLE[errno.ENOSPC]
    return STORAGE_TROUBLE[errno.EROFS] if "Read-only file system" in text else None
