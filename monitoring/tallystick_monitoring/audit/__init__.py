"""The audit: every served value against the one that history says, and a cause for each mismatch.

:func:`~tallystick_monitoring.audit.audit_run.audit` is the way in. Of the other modules,
``changes`` says what has to be looked at, ``comparing`` finds the values that differ, ``evidence``
gathers what log and history say about them, ``causes`` names why, ``effect`` how much it mattered;
``state`` keeps what was found, and ``summary`` makes the report of it.
"""
