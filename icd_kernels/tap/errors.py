"""What a model that cannot be tapped is refused with."""


class TapError(ValueError):
    """A model whose logits are not a function of the mean of a map; the message says what stands between."""
