"""An optimizer whose linear parameters have param groups of their own, tied to the groups that they were in.

The user's groups keep their places. What was linear in one of them becomes a group behind all of the user's, which
names that one as its partner: it has the partner's hyper-parameters, and the partner's learning rate times the
multiplier, set from there right before the parameters change, whoever set the partner's.
"""

import inspect
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_rank.optim._layout import PARTNER_KEY, SCALED, Groups, arranged, in_layout_of, times
from lightning_rank.optim._wrapping import check_groups_can_be_added, replaced, wrapped
from lightning_rank.optim.param_groups import BASE, MULTIPLIER_KEY, LinearGroup, linear_name

_PER_PARAMETER = {"params", "param_names"}

# Of each optimizer the places of its parameters, by id, in the order in which the user gave them. One that is fitted
# again comes with the groups that it has been split into, which do not tell it.
_PLACES: WeakKeyDictionary[Any, dict[int, int]] = WeakKeyDictionary()


class SplitOptimizer:
    """Splits the groups of an optimizer, and from then on ties them before each step.

    Args:
        optimizer: The optimizer; one that is built around another shares its groups with it.
        linear: The linear bottlenecks and their multipliers.
        tied: Whether the linear groups follow their partners; otherwise they are split off and left alone.

    Attributes:
        saved_layout: For each group of the state dict that was loaded last, whether it was the user's; None before.

    Raises:
        ValueError: The optimizer cannot be given further groups.
        RuntimeError: Its groups are scaled already.
    """

    def __init__(self, optimizer: Any, linear: Sequence[LinearGroup], tied: bool = True) -> None:
        self.optimizer = optimizer
        self.tied = tied
        self.saved_layout: list[bool] | None = None
        self._linear = linear
        self._owner = {id(parameter): group for group in linear for parameter in group.params}
        self._pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []  # each linear group and its partner
        self._known: list[tuple[int, int, int]] = []  # the shape of the groups as they were split last
        self._users_turn = False
        self._undo = ExitStack()
        if any(MULTIPLIER_KEY in group and PARTNER_KEY not in group for group in optimizer.param_groups):
            raise RuntimeError(
                "param groups: their learning rates are scaled by depth already (depth_scaled_param_groups); use "
                "either that function or the DepthScaledLR callback"
            )
        self._before = [(group, dict(group)) for group in optimizer.param_groups]
        groups = [*map(id, optimizer.param_groups)]
        self._chain = [member for member in wrapped(optimizer) if [*map(id, member.param_groups)] == groups]
        self._place = _PLACES.setdefault(self._chain[-1], {})
        self._hyper_parameters = {key for member in self._chain for key in _hyper_parameters(member)}
        self.split()
        # A wrapper may do without torch's constructor, and so without hooks; what is inside has them.
        hooked = [member for member in self._chain if "_optimizer_load_state_dict_pre_hooks" in vars(member)]
        self._hooks = [(member, member.register_step_pre_hook(self._before_step)) for member in hooked]
        handles = [handle for _, handle in self._hooks]
        for handle in (*handles, *(member.register_load_state_dict_pre_hook(self._before_load) for member in hooked)):
            self._undo.callback(handle.remove)
        if not hooked:  # no class of torch's
            for name, method in {"step": self._stepping, "load_state_dict": self._loading}.items():
                self._undo.enter_context(replaced(optimizer, name, method(getattr(optimizer, name))))

    @property
    def groups(self) -> Groups:
        """The param groups there are."""
        return self.optimizer.param_groups

    @property
    def linear_groups(self) -> Groups:
        """Those that were split off."""
        return [group for group in self.groups if PARTNER_KEY in group]

    def split(self) -> None:
        """Split what is not split yet, be it new, restored or added; doing it again changes nothing."""
        if self._users_turn or self._shape() == self._known:
            return
        for parameter in (parameter for group in self.groups for parameter in group["params"]):
            self._place.setdefault(id(parameter), len(self._place))
        if not self._place.keys() & self._owner.keys():
            return
        check_groups_can_be_added(self.optimizer)
        users, linear = arranged(self.groups)
        position = {id(user): index for index, user in enumerate(users)}
        partner = {id(group): user for group, user in self._pairs}
        pairs = [(group, partner.get(id(group)) or users[group[PARTNER_KEY]]) for group in linear]
        # A linear group goes with its partner, and not without it.
        pairs += [pair for pair in self._pairs if all(pair[0] is not group for group in linear)]
        pairs = [(group, user) for group, user in pairs if id(user) in position]
        given = {id(parameter) for user in users for parameter in user["params"]}
        for group, _ in pairs:  # what the user puts into a group anew is in no other any more
            _keep(group, [index for index, parameter in enumerate(group["params"]) if id(parameter) not in given])
        pairs += [(piece, user) for user in users for piece in self._split_off(user)]
        self._pairs = sorted((pair for pair in pairs if pair[0]["params"]), key=lambda pair: position[id(pair[1])])
        for group, user in self._pairs:
            group[PARTNER_KEY] = position[id(user)]
            group[MULTIPLIER_KEY] = self._owner[id(group["params"][0])].multiplier
        self._name(users)
        self._set_groups(users, [group for group, _ in self._pairs])

    def tie(self) -> None:
        """Set each linear group from its partner; doing it again changes nothing."""
        self.split()
        for group, user in self._pairs if self.tied and not self._users_turn else []:
            _follow(group, user, self._hyper_parameters)

    def come_last(self) -> None:
        """Tie after what others do before a step."""
        for member, handle in self._hooks:
            hooks = member._optimizer_step_pre_hooks
            if handle.id in hooks and next(reversed(hooks)) != handle.id:
                hooks.move_to_end(handle.id)

    def shows(self, groups: Any) -> bool:
        """Whether this is the list of param groups of the optimizer, or of one that it is built around."""
        return any(member.param_groups is groups for member in self._chain)

    @contextmanager
    def without_linear_groups(self) -> Iterator[None]:
        """Hide the linear groups for a moment, and tie them afterwards."""
        self.split()
        if self._users_turn or not self.linear_groups:
            yield
            return
        users, linear = arranged(self.groups)
        self._set_groups(users, [])
        self._users_turn = True
        try:
            yield
        finally:
            self._users_turn = False
            self._set_groups(users, linear)
            self.tie()

    @contextmanager
    def users_groups(self) -> Iterator[None]:
        """Let the optimizer have for a moment the groups that the user made, and split what it has afterwards."""
        if self._users_turn:
            yield
            return
        self.split()
        users, linear = arranged(self.groups)
        before = [dict(user) for user in users]
        for position, user in enumerate(users):
            parts = [user, *(group for group in linear if group[PARTNER_KEY] == position)]
            given = [parameter for part in parts for parameter in part["params"]]
            order = sorted(range(len(given)), key=lambda index: self._place_of(given[index]))
            for key in _PER_PARAMETER & user.keys():
                values = [value for part in parts for value in part[key]]
                user[key] = [values[index] for index in order]
        self._set_groups(users, [])
        self._users_turn = True
        try:
            yield
        finally:
            self._users_turn = False
            for group in linear:
                user, old = users[group[PARTNER_KEY]], before[group[PARTNER_KEY]]
                _follow(group, user, {key for key in user if key not in old or user[key] is not old[key]})
            for user, old in zip(users, before, strict=True):
                user |= {key: old[key] for key in _PER_PARAMETER & old.keys()}
            self._set_groups([*self.groups], linear)
            self._known = []
            self.split()

    def end(self) -> None:
        """Leave the groups as they are, and their learning rates to whoever sets them."""
        self._undo.close()

    def take_back(self) -> None:
        """Leave the optimizer as it was given."""
        self.end()
        for group, before in self._before:
            group.clear()
            group.update(before)
        self._set_groups([group for group, _ in self._before], [])

    def _split_off(self, user: dict[str, Any]) -> Groups:
        owners = [self._owner.get(id(parameter)) for parameter in user["params"]]
        pieces: Groups = []
        for owner in (group for group in self._linear if any(group is known for known in owners)):
            pieces.append(
                {MULTIPLIER_KEY: owner.multiplier, **{key: user[key] for key in _PER_PARAMETER & user.keys()}}
            )
            _follow(pieces[-1], user, user)
            _keep(pieces[-1], [index for index, known in enumerate(owners) if known is owner])
        if pieces:
            _keep(user, [index for index, known in enumerate(owners) if known is None])
        return pieces

    def _name(self, users: Groups) -> None:
        """Name the groups that have no name yet; the user's as Lightning would show them."""
        for position, user in enumerate(users if self._pairs else []):
            user.setdefault("name", BASE if len(users) == 1 else f"pg{position + 1}")
        taken = {group.get("name") for group in (*users, *(group for group, _ in self._pairs))}
        for group, user in self._pairs:
            if "name" not in group:
                owner = self._owner[id(group["params"][0])]
                group["name"] = linear_name(user["name"], owner.name, taken)
                taken.add(group["name"])

    def _set_groups(self, users: Groups, linear: Groups) -> None:
        for member in self._chain:
            member.param_groups[:] = users + linear
        self._known = self._shape()

    def _shape(self) -> list[tuple[int, int, int]]:
        """What changes as soon as groups, or the parameters in them, are others."""
        return [(id(group), id(group["params"]), len(group["params"])) for group in self.groups]

    def _place_of(self, parameter: Tensor) -> int:
        return self._place.get(id(parameter), len(self._place))

    def _before_load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        self.split()
        self.saved_layout = [MULTIPLIER_KEY not in group for group in state_dict["param_groups"]]
        return in_layout_of(self.groups, state_dict, self._place_of) if self.linear_groups else None

    def _stepping(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def tie_then_step(*args: Any, **kwargs: Any) -> Any:
            given = ((self.optimizer, *args), kwargs)
            (_, *rest), options = self._before_step(self.optimizer, *given) or given
            return step(*rest, **options)

        return tie_then_step

    def _loading(self, load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
        def load_then_split(*args: Any, **kwargs: Any) -> None:
            load_state_dict(*args, **kwargs)
            self._known = []

        return load_then_split

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tie, and again after the closure, in which Lightning runs the training step and most of its hooks."""
        self.tie()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            return None

        def closure_then_tie() -> Any:
            loss = closure()
            self.tie()
            return loss

        if "closure" in kwargs:
            return args, kwargs | {"closure": closure_then_tie}
        return (*args[:1], closure_then_tie, *args[2:]), kwargs


def _hyper_parameters(optimizer: Any) -> set[str]:
    """What the optimizer takes as an argument; its other defaults, such as a count of steps, are state of a group.

    One that names none but takes any keywords, to hand them on, is given all its defaults by them.
    """
    makers = [vars(cls)["__init__"] for cls in type(optimizer).__mro__[:-1] if "__init__" in vars(cls)]
    taken = [parameter for maker in makers for parameter in inspect.signature(maker).parameters.values()]
    defaults = set(getattr(optimizer, "defaults", ()))
    named = {parameter.name for parameter in taken} & defaults | {"lr"}
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)
    return defaults | named if hands_on and named == {"lr"} else named


def _keep(group: dict[str, Any], indices: Sequence[int]) -> None:
    """Leave some of its parameters in a group."""
    for key in _PER_PARAMETER & group.keys() if len(indices) < len(group["params"]) else ():
        group[key] = [group[key][index] for index in indices]


def _follow(group: dict[str, Any], partner: dict[str, Any], keys: Container[str]) -> None:
    """Set what a linear group has from its partner."""
    for key in [key for key in partner if key in keys and key not in _PER_PARAMETER | {"name"}]:
        # Times a number, a tensor gives a new tensor: no two groups share one.
        value = times(partner[key], group[MULTIPLIER_KEY]) if key in SCALED else partner[key]
        if isinstance(group.get(key), Tensor):
            # The same tensor, for whoever captured it in a CUDA graph.
            with torch.no_grad():
                group[key].copy_(value) if isinstance(value, Tensor) else group[key].fill_(value)
        else:
            group[key] = value
