"""An optimizer around another optimizer: the plumbing that schedulers, checkpoints and loops rely on."""

import inspect
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer


class OptimizerWrapper(Optimizer):
    """Shares ``param_groups``, ``state`` and ``defaults`` with ``base`` and keeps its own state apart.

    The three are properties, because the base optimizer replaces the objects when it loads a state dict. Subclasses
    name a key of the state dict for their own state and fill in ``_own_state``, ``_checked_own_state`` and
    ``_set_own_state``.

    Args:
        base: any ``torch.optim.Optimizer``.

    Raises:
        TypeError: ``base`` is something else.
    """

    _state_key = "wrapper"

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(base).__name__}")
        self.base = base
        # Optimizer.__init__ would build param_groups of its own; __setstate__ sets up the hooks only.
        Optimizer.__setstate__(self, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's own list."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's own state."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults."""
        return self.base.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, with our own state under one more key."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = {**self.base.state_dict(), self._state_key: self._own_state()}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state = post_hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both states; a state dict of the bare base optimizer is accepted and resets our own."""
        state = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state = pre_hook(self, state) or state
        # Checked before and set after the base optimizer's, so that a refused state dict changes nothing.
        own = self._checked_own_state(state.pop(self._state_key, None))
        self.base.load_state_dict(state)
        self._set_own_state(own)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _own_state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _checked_own_state(self, state: dict[str, Any] | None) -> Any:
        raise NotImplementedError

    def _set_own_state(self, own: Any) -> None:
        raise NotImplementedError

    def _base_needs_closure(self) -> bool:
        """Whether the base optimizer evaluates a closure itself, as LBFGS does."""
        closure = inspect.signature(self.base.step).parameters.get("closure")
        return closure is not None and closure.default is inspect.Parameter.empty

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Public members that only the base optimizer has, such as schedule-free's ``train()`` and ``eval()``.

            Private ones stay apart: a ``GradScaler`` would find that a fused base unscales by itself.
            """
            base = self.__dict__.get("base")
            if base is None or name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(base, name)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler puts a `step` on the instance that belongs to this instance alone.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"
