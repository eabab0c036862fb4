"""Sixty days of made-up orders, up to now: what kitchens reported, and how orders went."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path("feature_repo/data")
KITCHENS = np.arange(1, 41)
HOURS = 24 * 60
LATE_MINUTES = 40


def kitchen_hours(now: pd.Timestamp, random: np.random.Generator) -> pd.DataFrame:
    """A row for each kitchen and hour; it is known five minutes after the hour."""
    hours = pd.date_range(end=now.floor("h"), periods=HOURS, freq="h")
    rows = pd.MultiIndex.from_product([hours, KITCHENS], names=["hour", "kitchen"]).to_frame(
        index=False
    )
    rush = 6 * np.exp(-((rows["hour"].dt.hour - 19) ** 2) / 8)
    rows["open_orders"] = random.poisson(1 + rush + rows["kitchen"] % 5)
    rows["prep_minutes"] = (8 + 0.9 * rows["open_orders"] + random.normal(0, 2, len(rows))).round(1)
    rows["known_at"] = rows["hour"] + timedelta(minutes=5)
    return rows[rows["known_at"] <= now]


def orders(kitchens: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Orders with their outcome: late if they took more than LATE_MINUTES."""
    rows = kitchens.sample(20_000, random_state=1).sort_values("known_at", ignore_index=True)
    rows["ordered_at"] = rows["known_at"] + pd.to_timedelta(random.uniform(0, 3500, len(rows)), "s")
    rows["distance_km"] = random.gamma(3, 1.2, len(rows)).round(1)
    minutes = 4 + rows["prep_minutes"] + 4 * rows["distance_km"] + random.normal(0, 6, len(rows))
    rows["late"] = (minutes > LATE_MINUTES).astype("int64")
    rows["delivered_at"] = rows["ordered_at"] + pd.to_timedelta(minutes.clip(5), "min")
    return rows[["kitchen", "distance_km", "ordered_at", "delivered_at", "late"]]


def correction(now: pd.Timestamp) -> pd.DataFrame:
    """The last hour of every kitchen again: the first report had missed orders."""
    rows = pd.read_parquet(DATA / "kitchen_hours" / "history.parquet")
    rows = rows[rows["hour"] == rows["hour"].max()].copy()
    rows["open_orders"] += 12
    rows["prep_minutes"] += 11
    rows["known_at"] = now
    return rows


if __name__ == "__main__":
    now = pd.Timestamp(datetime.now(UTC))
    (DATA / "kitchen_hours").mkdir(parents=True, exist_ok=True)
    if "--correct" in sys.argv:
        correction(now).to_parquet(DATA / "kitchen_hours" / "correction.parquet")
    else:
        random = np.random.default_rng(7)
        kitchens = kitchen_hours(now, random)
        kitchens.to_parquet(DATA / "kitchen_hours" / "history.parquet")
        orders(kitchens, random).to_parquet(DATA / "orders.parquet")
