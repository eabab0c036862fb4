"""The audit: every served value against the one that history gives, and a cause for each mismatch.

:func:`~tallystick_monitoring.audit.audit_run.audit` is the entry point. ``log_changes`` and
``history_changes`` find what has to be compared, ``value_comparison`` compares it,
``request_evidence``, ``history_evidence`` and ``log_evidence`` gather evidence about mismatches,
``cause_rules`` gives causes, and ``prediction_effect`` measures what they changed. ``audit_state``
saves the findings, and ``audit_report`` makes the report.
"""
