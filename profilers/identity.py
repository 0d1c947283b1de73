"""Who asked: under sudo, the user behind it, who runs the command and owns what is written."""

from __future__ import annotations

import dataclasses
import os
import pwd

from bpflame.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """A user to act for.

    Attributes:
        uid: User id.
        gid: Group id.
        groups: Supplementary groups.
        environment: Variables that name the user: HOME, USER, LOGNAME, SHELL.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str]


def invoking_user() -> Identity | None:
    """The user who called sudo; None when there is no sudo, or it was root.

    Raises:
        UsageError: It cannot be told who it was: better than to take them for root.
    """
    if os.geteuid() != 0:
        return None
    if "SUDO_UID" not in os.environ:
        return None
    try:
        uid, gid = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError) as error:
        raise UsageError(
            "SUDO_UID and SUDO_GID do not name a user and a group",
            "unset both to act as root",
        ) from error
    if uid == 0:
        return None
    try:
        user = pwd.getpwuid(uid)
    except KeyError:  # no directory of users at hand: still not root
        return Identity(uid, gid, (gid,), {})
    names = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    groups = tuple(os.getgrouplist(user.pw_name, gid))
    return Identity(uid, gid, groups, {**names, "SHELL": user.pw_shell})


def act_as(identity: Identity) -> None:
    """Become the user, for good: groups first, the user id last."""
    os.setgroups(list(identity.groups))
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
