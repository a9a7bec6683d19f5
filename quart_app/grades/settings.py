"""What the grades service takes from the environment. A default states its trade."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from mesh.settings import settings_config

#: For trying it on one machine; a warning is logged as long as it is in force.
TRIAL_PASSWORD = "grades"


class GradesSettings(BaseSettings):
    """Every replica needs the same user and password: with them it asks its peers for a backup."""

    model_config = settings_config("GRADES_")

    username: str = Field("grades", min_length=1, description="Basic auth of /set and /backup")
    password: SecretStr = Field(SecretStr(TRIAL_PASSWORD), description="change it wherever others reach the ports")

    snapshot_dir: Path = Field(
        Path("data/grades"), description="where snapshots are kept; replicas of one machine may share it"
    )
    snapshot_every: int = Field(
        20_000, ge=1, description="entries between snapshots: more is a longer log, less is more writing"
    )

    set_timeout_ms: int = Field(5000, ge=100, description="longest wait for a change to come back through the log")
    set_in_flight: int = Field(2000, ge=1, description="changes under way at once; further ones are refused")

    backups_at_once: int = Field(2, ge=1, description="backups given at once; further askers go to the next peer")
    backup_timeout_s: float = Field(600, gt=0, description="longest time for one backup, given or taken")
    backup_max_records: int = Field(20_000_000, ge=1, description="a backup of more records is refused")
    peer_timeout_s: float = Field(10, gt=0, description="longest silence of a peer")
    founder_patience_s: float = Field(
        10, gt=0, description="how long survivors of a lost log wait for its new founder before they found it again"
    )
