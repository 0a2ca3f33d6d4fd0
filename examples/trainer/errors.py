"""Which errors are written for the user, and which are somebody's bug."""

import dis
from pathlib import Path

import marble_opt

_OWN = (Path(__file__).resolve().parents[1], Path(marble_opt.__file__).resolve().parent)


def is_for_the_user(error: BaseException) -> bool:
    """Whether the error says by itself what to do: a ``raise`` statement of ours made it, in examples/ or marble_opt/.

    Not one that a library raised deep down, nor one that a call into torch, ``zip(strict=True)`` or the like raised in
    our code: these need their traceback.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    raised = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and any(folder in Path(code.co_filename).resolve().parents for folder in _OWN)
