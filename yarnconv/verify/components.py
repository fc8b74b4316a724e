"""What `check` needs beyond the base installation."""

from importlib.util import find_spec

from yarnconv.errors import MissingComponent


def require(extra: str, *modules: str) -> None:
    """Raise MissingComponent, with the install line, where one of the modules is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingComponent(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            fix=f'Install with: pip install "yarnconv[{extra}]" (in a clone: pip install --constraint '
            f'constraints.txt ".[{extra}]").',
        )
