"""What functions of several rooms refuse, each kind of fault once."""

import numbers


def check_count(name: str, value, least: int = 1) -> int:
    """`value` as an int, if it is a whole number (NumPy's too) of at least `least`.

    Raises:
        ValueError: it is not; True and 2.0 are no counts.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"{name} must be a whole number, at least {least}, got {value!r}"
        )
    return int(value)
