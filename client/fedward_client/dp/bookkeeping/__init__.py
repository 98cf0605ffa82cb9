"""Clipped sums with one forward and one backward pass: book-keeping (Bu et al., ICML 2023), our own implementation.

While the model runs, each trainable layer's ``forward`` is replaced by one whose backward pass computes the gradient
of its input and books what the gradients of its parameters need; autograd computes none of them. What is booked gives
every patient's squared norm at once, and after the pass, with the clipping factors known, each layer's sum.
"""

from fedward_client.dp.bookkeeping.engine import BookkeepingEngine
from fedward_client.dp.bookkeeping.layers import unsupported

__all__ = ["BookkeepingEngine", "unsupported"]
