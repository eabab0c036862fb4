"""The model: will this order be late?"""

from datetime import timedelta

from feast import FileSource
from features import order_features
from sklearn.ensemble import HistGradientBoostingClassifier

from tallystick import Label, Model

late_order = Model(
    name="late_order",
    features=order_features,
    label=Label(
        source=FileSource(
            name="orders",
            path="data/orders.parquet",
            timestamp_field="ordered_at",  # the request that a row labels
            created_timestamp_column="delivered_at",  # when its label became known
        ),
        column="late",
        keys=("kitchen", "distance_km"),  # with the request time: which request
        matures_after=timedelta(hours=2),
    ),
    estimator=HistGradientBoostingClassifier(max_depth=4, max_iter=60),
)
