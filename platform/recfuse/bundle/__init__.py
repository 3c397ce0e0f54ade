"""In: named tensors and a manifest. Out: a directory named by its content hash, and what serving reads back from it."""

from recfuse.bundle.bundle import Bundle, BundleError, copy_bundle, newest_bundle, read_bundle, write_bundle

__all__ = ["Bundle", "BundleError", "copy_bundle", "newest_bundle", "read_bundle", "write_bundle"]
