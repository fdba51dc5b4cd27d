def build() -> dict[str, str]:
    """Returns the facts of the build."""
