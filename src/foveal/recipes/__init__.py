"""One file per paper: the arms and the claim."""
