"""torchvision beside a CPU build of torch, for the tests of what needs it.

Its wheels are made for CUDA builds: on import they declare the shapes of operators that only those
have. Where that is what fails, the declarations are left out; nothing here calls the operators.
"""

import importlib

import torch


def import_or_none(*names: str):
    """The modules, or None where one is not installed."""
    register = torch.library.register_fake

    def tolerant(op, *given, **options):
        made = register(op, *given, **options)

        def declare(function):
            try:
                return made(function)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                return function

        return declare if callable(made) else made

    torch.library.register_fake = tolerant
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError:
        return None
    finally:
        torch.library.register_fake = register
