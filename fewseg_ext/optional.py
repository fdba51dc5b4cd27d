"""torchvision, which the operators do without and the models' usual backbones and data need."""


def need_torchvision(what: str) -> None:
    """To be called before torchvision is imported for ``what``, which begins the message.

    Raises:
        ImportError: it is not installed, or made for another torch than the one that is here.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{what} torchvision: pip install torchvision") from error
    except RuntimeError as error:
        # "operator torchvision::nms does not exist": its library was made for another torch and did not load.
        import torch

        raise ImportError(
            f"{what} torchvision, and the one that is installed does not fit torch {torch.__version__} ({error}): "
            "install both together with pip install --upgrade torch torchvision"
        ) from error
