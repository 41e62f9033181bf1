"""What of SQLAlchemy's suite applies to Sagitta, and why the rest does not.

A test is left out for one of the reasons below, which are those of the server, not of the dialect.
"""

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

NO_TRANSACTIONS = "each statement is its own transaction"
NO_GENERATED_KEYS = "there are no generated keys; programs choose them"
NO_SUCH_CONSTRAINT = "foreign keys, UNIQUE and CHECK are refused"
NO_SUCH_OBJECT = "there are no sequences, temporary tables, comments"
NO_SUCH_TYPE = "there is no such type"


def _closed(reason: str):
    """A property that closes a group of tests."""

    def requirement(self):
        return exclusions.skip_if(lambda: True, reason)

    return property(requirement)


def _open():
    """A property that opens a group of tests."""
    return property(lambda self: exclusions.open())


class Requirements(SuiteRequirements):
    """One property for each group of tests that differs from the default."""

    # Transactions.
    savepoints = _closed(NO_TRANSACTIONS)
    two_phase_transactions = _closed(NO_TRANSACTIONS)
    isolation_level = _closed(NO_TRANSACTIONS)
    autocommit = _closed(NO_TRANSACTIONS)

    # Keys.
    autoincrement_insert = _closed(NO_GENERATED_KEYS)
    autoincrement_without_sequence = _closed(NO_GENERATED_KEYS)
    identity_columns = _closed(NO_GENERATED_KEYS)
    implements_get_lastrowid = _closed(NO_GENERATED_KEYS)
    empty_inserts = _closed(NO_GENERATED_KEYS)
    empty_inserts_executemany = _closed(NO_GENERATED_KEYS)
    insert_from_select = _open()

    # Constraints and objects.
    foreign_keys = _closed(NO_SUCH_CONSTRAINT)
    foreign_key_ddl = _open()  # Left out of CREATE TABLE by ignore_constraints; columns take their type from it.
    foreign_key_constraint_reflection = _closed(NO_SUCH_CONSTRAINT)
    self_referential_foreign_keys = _closed(NO_SUCH_CONSTRAINT)
    unique_constraint_reflection = _closed(NO_SUCH_CONSTRAINT)
    inline_check_constraint_reflection = _closed(NO_SUCH_CONSTRAINT)
    check_constraint_reflection = _closed(NO_SUCH_CONSTRAINT)
    index_reflection = _closed("indexes of scalars are not there yet")
    index_ddl_if_exists = _closed("indexes of scalars are not there yet")
    sequences = _closed(NO_SUCH_OBJECT)
    no_sequences = _open()
    temporary_tables = _closed(NO_SUCH_OBJECT)
    temp_table_names = _closed(NO_SUCH_OBJECT)
    temp_table_reflection = _closed(NO_SUCH_OBJECT)
    has_temp_table = _closed(NO_SUCH_OBJECT)
    temporary_views = _closed(NO_SUCH_OBJECT)
    comment_reflection = _closed(NO_SUCH_OBJECT)
    computed_columns = _closed("there are no computed columns")

    # Types.
    json_type = _closed(NO_SUCH_TYPE)
    uuid_data_type = _closed(NO_SUCH_TYPE)
    like_escapes = _closed("LIKE … ESCAPE takes the backslash alone")

    # What is there, and closed by default.
    schemas = _open()
    views = _open()
    view_reflection = _open()
    insert_returning = _open()
    update_returning = _open()
    delete_returning = _open()
    insertmanyvalues = _open()
    insert_executemany_returning = _open()
    multivalues_inserts = _open()
    ctes = _open()
    intersect = _open()
    except_ = _open()
    window_functions = _open()
    supports_is_distinct_from = _open()
    supports_distinct_on = _open()
    update_from = _open()
    delete_from = _open()
    table_value_constructor = _open()
    parens_in_union_contained_select_w_limit_offset = _open()
    parens_in_union_contained_select_wo_limit_offset = _open()


NO_NAMES = "names of keys and indexes, and lengths of text, are not kept"
DOUBLES = "a number with a point is a DOUBLE, and the division of numbers too"

LEFT_OUT = {
    "test_string_length_reflection": NO_NAMES,
    "test_long_convention_name[ix": NO_NAMES,
    "test_long_convention_name[pk": NO_NAMES,
    "test_round_trip_same_named_column[dot.s]": "files of tables allow no dot in the name of a column",
    "test_autoclose_on_insert_implicit_returning": NO_GENERATED_KEYS,
    "test_insert_from_select_autoinc": NO_GENERATED_KEYS,
    "test_no_results_for_non_returning_insert": NO_GENERATED_KEYS,
    "test_row_with_dupe_names": "columns of one SELECT have names of their own",
    "test_concatenate_binary": "the types of $1 || $2 are not inferred",
    "test_concatenate_clauselist": "the types of $1 || $2 are not inferred",
    "test_truediv_divisor": DOUBLES,
    "test_truediv_numeric": DOUBLES,
    "test_window_rows_between_w_caching": "the bounds of a window are constants, not parameters",
}
"""Single tests that no requirement covers, by the beginning of their names."""


def reason_to_leave_out(name: str) -> str | None:
    """Why a test does not apply; None if it does."""
    return next((reason for start, reason in LEFT_OUT.items() if name.startswith(start)), None)
