"""SQLAlchemy's plugin of pytest, and what its tests expect of a database."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import pytest

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

import requirements
from sqlalchemy.testing.plugin import pytestplugin as plugin
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: F403

import sagitta
from sagitta.sqlalchemy import SagittaDialect

if "SAGITTA_TEST_URI" in os.environ:
    with sagitta.connect(os.environ["SAGITTA_TEST_URI"]) as connection:
        for schema in ("test_schema", "test_schema_2"):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")

# The suite takes warnings for failures, and rolls back whatever it did.
SagittaDialect.do_rollback = lambda self, dbapi_connection: dbapi_connection.commit()


def pytest_collection_modifyitems(session, config, items):
    """After SQLAlchemy's own: leaves single tests out, with their reason."""
    plugin.pytest_collection_modifyitems(session, config, items)
    for item in items:
        reason = requirements.reason_to_leave_out(item.name)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
