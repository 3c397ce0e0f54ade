"""What a user may say: the base of every config, its help, reference and schema, and the one error of bad input.

In: plain values from YAML, the command line or Python. Out: frozen, checked configs; or `InvalidFieldError`.
"""

from recfuse.config.base import NOT_BLANK, Config, from_mapping, load, read, renamed
from recfuse.config.errors import InputError, InvalidFieldError, require, shorten, without_secrets
from recfuse.config.reference import reference, schema

__all__ = ["NOT_BLANK", "Config", "InputError", "InvalidFieldError", "from_mapping", "load", "read", "reference",
           "renamed", "require", "schema", "shorten", "without_secrets"]
