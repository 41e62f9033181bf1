"""The tests that SQLAlchemy has for any dialect. What applies: `requirements.py`."""

from sqlalchemy.testing.suite import *  # noqa: F403
