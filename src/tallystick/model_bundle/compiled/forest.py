"""Ensembles of trees of any size, read and evaluated by treelite.

This module calls treelite at its documented C interface (``treelite/c_api.h``): the Python function
takes twice as long for one row.
"""

from __future__ import annotations

import copy
import ctypes
from functools import cache
from typing import Any

import numpy as np

from tallystick.model_bundle.compiled import CompiledFormError, Floats, first_line
from tallystick.model_bundle.compiled.leaf_masks import LeafMasks, Tree

LIBRARY = "treelite"
LIBRARY_SERIES = "4.8"
"""Releases of the library that are used."""


class Forest:
    """An ensemble of trees that treelite evaluates.

    Args:
        data: The trees as they were serialized.

    Raises:
        CompiledFormError: The library is missing, of another series, or cannot read the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._function, self._config = _library()
        import treelite

        try:
            self._model = treelite.Model.deserialize_bytes(data)
        except treelite.TreeliteError as error:
            raise CompiledFormError(f"{LIBRARY} cannot read it: {first_line(error)}") from error
        if (self._model.input_type, self._model.output_type) != ("float64", "float64"):
            raise CompiledFormError("it does not compute in float64")
        self._header = self._model.get_header_accessor()
        # Boosting gives the probability of 1; a forest those of 0 and 1.
        self._columns = int(self._header.get_field("num_class").max())
        self._handle = self._model.handle.value
        self._data = data
        self.features = int(self._model.num_feature)

    @classmethod
    def of(cls, estimator: Any) -> Forest:
        """Read the trees of a fitted estimator of scikit-learn.

        Raises:
            CompiledFormError: The library is missing or of another series, or cannot read them.
        """
        _library()
        import treelite.sklearn

        trees = getattr(estimator, "estimators_", None)
        if trees is not None:
            # treelite trusts ``n_estimators``, and reads past the end if the fit stopped early.
            estimator = copy.copy(estimator)
            estimator.n_estimators = len(trees)
        try:
            data = bytes(treelite.sklearn.import_model(estimator).serialize_bytes())
        except Exception as error:
            # Any exception: the library reads the private parts of another.
            raise CompiledFormError(f"{LIBRARY} cannot compile it: {first_line(error)}") from error
        return cls(data)

    def to_bytes(self) -> bytes:
        """The trees as bytes."""
        return self._data

    def thresholds(self) -> dict[int, Floats]:
        """Feature → its thresholds in all trees."""
        found: dict[int, list[Floats]] = {}
        for tree in self._trees():
            for feature in np.unique(tree.feature[tree.left >= 0]):
                is_split = (tree.left >= 0) & (tree.feature == feature)
                found.setdefault(int(feature), []).append(tree.threshold[is_split])
        return {feature: np.concatenate(parts) for feature, parts in found.items()}

    def masks(self) -> LeafMasks:
        """The same trees as tables.

        Raises:
            CompiledFormError: The tables would be too large.
        """
        return LeafMasks.of(
            self._trees(),
            features=self.features,
            base=float(self._header.get_field("base_scores")[-1]),
            averages=bool(self._header.get_field("average_tree_output")[0]),
        )

    def predict(self, matrix: Floats) -> Floats:
        """Probability of 1 in each row, of shape (rows,).

        Args:
            matrix: Float64 of shape (rows, features).
        """
        given = np.ascontiguousarray(matrix, dtype=np.float64)
        found = np.empty((len(given), self._columns))
        failed = self._function(
            self._handle, given.ctypes.data, b"float64", len(given), found.ctypes.data, self._config
        )
        if failed:
            raise RuntimeError(f"{LIBRARY} failed with code {failed}.")
        return found[:, -1]

    def _trees(self) -> list[Tree]:
        return [
            _tree(self._model.get_tree_accessor(number), columns=self._columns)
            for number in range(self._model.num_tree)
        ]


def library_version() -> str:
    """The installed version of treelite."""
    from importlib.metadata import version

    return version(LIBRARY)


def _tree(accessor: Any, *, columns: int) -> Tree:
    left = accessor.get_field("cleft").copy()
    value = accessor.get_field("leaf_value").copy()
    if columns > 1:
        value[left < 0] = accessor.get_field("leaf_vector").reshape(-1, columns)[:, -1]
    return Tree(
        left=left,
        right=accessor.get_field("cright").copy(),
        feature=accessor.get_field("split_index").copy(),
        threshold=accessor.get_field("threshold").copy(),
        null_left=accessor.get_field("default_left").copy(),
        value=value,
    )


@cache
def _library() -> tuple[Any, int]:
    """The library's function that predicts, and its configuration for one thread.

    Raises:
        CompiledFormError: It is missing or of another series.
    """
    try:
        from treelite.libpath import find_lib_path

        library = ctypes.CDLL(str(find_lib_path()[0]))
    except (ImportError, OSError) as error:
        raise CompiledFormError(
            f"{LIBRARY} is missing; run  pip install 'tallystick[serving]'"
        ) from error
    if library_version().split(".")[:2] != LIBRARY_SERIES.split("."):
        raise CompiledFormError(f"{LIBRARY} {library_version()} is installed, not {LIBRARY_SERIES}")
    pointer = ctypes.c_void_p
    config = pointer()
    library.TreeliteGTILParseConfig.argtypes = [ctypes.c_char_p, pointer]
    settings = b'{"predict_type": "default", "nthread": 1}'
    if library.TreeliteGTILParseConfig(settings, ctypes.byref(config)) or config.value is None:
        raise CompiledFormError(f"{LIBRARY} refuses its configuration")
    function = library.TreeliteGTILPredict
    function.argtypes = [pointer, pointer, ctypes.c_char_p, ctypes.c_uint64, pointer, pointer]
    return function, config.value
