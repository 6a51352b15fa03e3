"""Questions about roles: what they are, what they grant, which of them can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from authsvc.database import Transaction
from authsvc.errors import NotFound
from authsvc.records import EMPTY, Listing, Page, Role, Stamp
from authsvc.repositories.grants import Grants
from authsvc.repositories.heads import Heads
from authsvc.repositories.memberships import Memberships
from authsvc.repositories.policy import Policies
from authsvc.repositories.policy_statements import Start
from authsvc.repositories.roles import Roles
from authsvc.role_graph import covering
from authsvc.services.listing import Position, list_page


@dataclass(frozen=True, slots=True)
class RoleDetails:
    """A role with what is stored about it: nothing here is inherited."""

    role: Role
    parents: list[str]
    permissions: list[str]
    members_count: int


async def describe_role(
    tx: Transaction, tenant_id: UUID | None, name: str
) -> tuple[RoleDetails, Stamp]:
    """The role of that name. Raises NotFound (``role_not_found``)."""
    if tenant_id is not None:
        stamp = await Heads(tx, tenant_id).current()
        roles = Roles(tx, tenant_id)
        role = (await roles.named([name])).get(name)
        if role is not None:
            edges = await roles.edges_touching([role.id])
            parents = await roles.names(parent for child, parent in edges if child == role.id)
            permissions = await Grants(tx, tenant_id).of_role(role.id)
            count = await Memberships(tx, tenant_id).count(role.id)
            details = RoleDetails(role, sorted(parents.values()), permissions, count)
            return details, stamp
    raise NotFound("role_not_found", f"Role '{name}' does not exist")


async def list_roles(tx: Transaction, tenant_id: UUID | None, page: Page) -> Listing[Role]:
    """All roles in the order of their making."""

    async def fetch(position: Position, most: int) -> Sequence[tuple[Position, Role]]:
        if tenant_id is None:
            return []
        found = await Roles(tx, tenant_id).page(int(position[0]), most)
        return [((role.id,), role) for role in found]

    stamp = await Heads(tx, tenant_id).current() if tenant_id else EMPTY
    return await list_page(["roles"], page, (0,), stamp, fetch)


async def role_permissions(
    tx: Transaction, tenant_id: UUID | None, role: str, page: Page, *, direct: bool
) -> Listing[str]:
    """What the role grants, inherited included unless ``direct``; each name once, sorted."""
    names: list[str] = []
    stamp = EMPTY
    if tenant_id is not None:
        policy = await Policies(tx, tenant_id).read(Start.ROLES, [role])
        stamp, node = policy.stamp, policy.graph.named(role)
        if node is not None:
            names = sorted(node.grants if direct else policy.graph.effective(node.id))
    question = ["role_permissions", role, str(direct)]
    return await list_names(question, page, names, stamp)


async def list_names(
    question: Sequence[str], page: Page, names: Sequence[str], stamp: Stamp
) -> Listing[str]:
    """A page of names that are in memory already, in byte order."""

    async def fetch(position: Position, most: int) -> Sequence[tuple[Position, str]]:
        after = str(position[0])
        return [((name,), name) for name in names if name > after][:most]

    return await list_page(question, page, ("",), stamp, fetch)


async def role_has_permission(
    tx: Transaction, tenant_id: UUID | None, role: str, permission: str
) -> tuple[bool, Stamp]:
    """Whether a grant of the role, its own or inherited, covers the permission."""
    if tenant_id is None:
        return False, EMPTY
    policy = await Policies(tx, tenant_id).read(Start.ROLES, [role], covering(permission))
    node = policy.graph.named(role)
    has = node is not None and policy.graph.mask(node.id) & policy.graph.wanted(permission) != 0
    return has, policy.stamp


async def which_roles_can(
    tx: Transaction, tenant_id: UUID | None, permission: str, page: Page
) -> Listing[str]:
    """The roles with a grant, own or inherited, that covers the permission; as they were made."""
    nodes: dict[int, str] = {}
    stamp = EMPTY
    if tenant_id is not None:
        policy = await Policies(tx, tenant_id).read(Start.GRANTS_DOWN, covering(permission), ())
        stamp = policy.stamp
        nodes = {role_id: node.name for role_id, node in sorted(policy.graph.nodes.items())}

    async def fetch(position: Position, most: int) -> Sequence[tuple[Position, str]]:
        after = int(position[0])
        return [((i,), name) for i, name in nodes.items() if i > after][:most]

    return await list_page(["which_roles_can", permission], page, (0,), stamp, fetch)
