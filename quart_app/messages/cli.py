"""`mesh admin`: makes accounts administrators, with the Redis credentials that replicas start with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from mesh import Connections, RedisSettings, Unavailable
from quart_app.local.discovery import redis_settings
from quart_app.local.operate import data_option, redis_url_option
from quart_app.messages.users import LastAdministrator, NoSuchAccount, Users
from quart_app.security.identity import normal_email


@click.group()
def admin() -> None:
    """Make accounts of the message service administrators, or end that."""


def _add_command(name: str, help_text: str, *, is_admin: bool) -> None:
    """Add a command that makes an account an administrator, or ends that."""

    @admin.command(name=name, help=help_text)
    @click.argument("email")
    @redis_url_option
    @data_option
    def command(email: str, redis_url: str | None, data: Path) -> None:
        address = _normal_email_or_exit(email)
        is_changed = _change_or_exit(redis_settings(redis_url, data), address, is_admin=is_admin)
        role = "an administrator" if is_admin else "no administrator"
        click.echo(f"{address} is {role} now" if is_changed else f"{address} was {role} before; nothing is changed")


_add_command("promote", "Make an existing account an administrator.", is_admin=True)
_add_command("demote", "End the administrator rights of an account.", is_admin=False)


def _normal_email_or_exit(email: str) -> str:
    try:
        return normal_email(email)
    except ValueError as error:
        raise click.ClickException(f"{email} is not an e-mail address: {error}") from error


def _change_or_exit(settings: RedisSettings, email: str, *, is_admin: bool) -> bool:
    """Change the account, and return whether it was different before. Ends the program with a message on an error."""
    try:
        return asyncio.run(_set_admin(settings, email, is_admin=is_admin))
    except NoSuchAccount:
        raise click.ClickException(f"no account has the address {email}; register it first") from None
    except LastAdministrator:
        raise click.ClickException(f"{email} is the only active administrator; promote another one first") from None
    except Unavailable as error:
        raise click.ClickException(str(error)) from error


async def _set_admin(settings: RedisSettings, email: str, *, is_admin: bool) -> bool:
    client = Connections(settings).client("mesh-admin")
    try:
        return await Users(client).set_admin(email, is_admin=is_admin)
    finally:
        await client.aclose()
