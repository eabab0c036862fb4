"""The prediction log: what was asked, what was seen, what was answered; and the labels that came.

``record`` lays out a record, ``writer`` keeps it off the request path, ``reader`` reads it back.
"""
