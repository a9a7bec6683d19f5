"""The settings of the grades service, read from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from mesh import settings_config

#: The default password, for trials on one machine only. A replica that others can reach refuses to start with it.
TRIAL_PASSWORD = "grades"


class GradesSettings(BaseSettings):
    """Every replica needs the same user and password, because replicas ask each other for backups with them."""

    model_config = settings_config("GRADES_")

    username: str = Field("grades", min_length=1, description="the user of /set and /backup (Basic authentication)")
    password: SecretStr = Field(
        SecretStr(TRIAL_PASSWORD),
        description="the password of /set and /backup; change it where others reach the ports",
    )

    snapshot_dir: Path = Field(
        Path("data/grades"), description="the folder of the snapshots; replicas of one machine may share it"
    )
    snapshot_every: int = Field(
        20_000,
        ge=1,
        description="entries between two snapshots; more make the log longer, fewer make snapshots more frequent",
    )

    set_timeout_ms: int = Field(5000, ge=100, description="longest wait until this replica has applied a change")
    set_in_flight: int = Field(2000, ge=1, description="most changes under way at once; more are refused")

    backups_at_once: int = Field(
        2, ge=1, description="most backups that a replica gives at once; a refused peer asks the next replica"
    )
    backup_timeout_s: float = Field(600, gt=0, description="longest time for giving or reading one backup")
    backup_max_records: int = Field(20_000_000, ge=1, description="most records of a backup that is read")
    peer_timeout_s: float = Field(10, gt=0, description="longest wait for data from a peer")
    founder_patience_s: float = Field(
        10,
        gt=0,
        description="how long replicas wait for the founder of a new log to give a state, before one founds it again",
    )
