"""Where downloads are kept between runs: `tagpr` in the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Give `$XDG_CACHE_HOME/tagpr`, or `~/.cache/tagpr` where that is not set; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tagpr"
