"""Which form of a low-rank product costs least. Numbers only, no torch; the forms are in forms.py."""


def merging_pays(tokens: float, rows: int, cols: int) -> bool:
    """Is V made with less work than it saves on all `tokens` that see it? Whatever the rank: 2mnr < 2Tr(m + n)."""
    return rows * cols < tokens * (rows + cols)


def full_gradient_pays(tokens: int, rows: int, cols: int, rank: int) -> bool:
    """Are dA and dB had with less work from the gradient of V than from x and dY?"""
    return 2 * tokens * rows * cols + 4 * rows * cols * rank < 4 * tokens * rank * (rows + cols)
