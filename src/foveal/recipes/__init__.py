"""One file per paper: the arms and claims that `foveal run` measures. Files that begin with ``_`` are no recipes."""
