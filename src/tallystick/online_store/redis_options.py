"""The options of the online store in ``feature_store.yaml``; read by Feast and by serving."""

from __future__ import annotations

from typing import Final, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, model_validator

RedisType: TypeAlias = Literal["redis", "redis_cluster", "redis_sentinel"]
EMBEDDED: Final = "embedded"


class RedisOptions(BaseModel):
    """How the online store reaches its Redis, and what it does with writes."""

    connection_string: str = Field(
        default=EMBEDDED,
        description="host:port[,host2:port2…][,option=value…], unix:///path, or embedded for a "
        "private server in the repo's state folder; docs/settings.md has the options.",
    )
    redis_type: RedisType = Field(
        default="redis",
        description="redis_cluster if connection_string names one node of a cluster (several nodes"
        " are a cluster anyway), redis_sentinel if it names Sentinels.",
    )
    sentinel_master: str = Field(
        default="mymaster", description="Name by which the Sentinels know the Redis."
    )
    key_ttl_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Seconds after an entity's last write at which Redis removes its value; rows "
        "expire by their views' ttl anyway.",
    )
    journal: bool = Field(
        default=False,
        description="Whether every write is journaled in the state folder, for the served clock.",
    )
    connect_timeout_s: float = Field(default=1.0, gt=0)
    read_timeout_s: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _check_journal(self) -> Self:
        if self.journal and self.key_ttl_seconds is not None:
            raise ValueError(
                "journal: true needs key_ttl_seconds unset: the journal would not know which "
                "values Redis has removed by it"
            )
        return self
