"""What decides how a step is computed (forms.py, cross_entropy.py). Numbers only, no torch: memory plans read it."""

# Logits that there are at a time: bytes, in the dtype of products (much, so that the head's gradient is summed up
# seldom), and entries of their softmax, in float32.
LOGITS, SOFTMAX = 2**26, 2**22


def merging_pays(tokens: float, rows: int, cols: int) -> bool:
    """Is V made with less work than it saves on all `tokens` that see it? Whatever the rank: 2mnr < 2Tr(m + n)."""
    return rows * cols < tokens * (rows + cols)


def full_gradient_pays(tokens: int, rows: int, cols: int, rank: int) -> bool:
    """Are dA and dB had with less work from the gradient of V than from x and dY?"""
    return 2 * tokens * rows * cols + 4 * rows * cols * rank < 4 * tokens * rank * (rows + cols)


def rows_at_once(width: int, device: str) -> int:
    """How many rows of a matrix a core's cache holds, with what is made of them; a GPU takes all at once."""
    return max(1, 2**16 // width) if device == "cpu" else 2**62
