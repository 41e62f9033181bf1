//! Who runs a statement, and what that user may see and do. Rights are those of the catalog at the moment of the
//! statement.
//!
//! What a user may not see is taken out of the catalog before a statement looks anything up in it: no name, list or
//! suggestion can tell of it, and reading needs no further check. Writing and defining ask [`Session::require`].
//! Views have no rights of their own: whoever reads one needs to see what it reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage::{Catalog, DEFAULT_SCHEMA, Role};

use crate::{Error, ErrorKind, Result, Session};

/// A user of the database: the name, and what tells the user from others who had or will have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserIdentity {
    /// The name.
    pub name: Arc<str>,
    /// Given out when the user was made; empty for users whom older programs made.
    pub id: Arc<str>,
}

/// Who runs the statements of a session.
#[derive(Debug, Clone)]
pub(crate) enum Principal {
    /// The program that opened the engine, which could read the files as well: everything is allowed.
    Owner,
    /// A user of the database.
    User(UserIdentity),
}

impl Session {
    /// The user whose rights the session has; `None`: it has all.
    pub fn user(&self) -> Option<&str> {
        self.identity().map(|user| user.name.as_ref())
    }

    /// As [`Session::user`], told from others of the same name.
    pub fn identity(&self) -> Option<&UserIdentity> {
        match self.principal() {
            Principal::Owner => None,
            Principal::User(user) => Some(user),
        }
    }

    /// The newest catalog with nothing in it but what the session may see. Cost: one request if nothing changed.
    ///
    /// # Errors
    /// A user that was dropped meanwhile.
    pub(crate) async fn catalog(&self) -> Result<Arc<Catalog>> {
        let whole = self.engine().database().catalog().await?;
        let Some(user) = self.identity() else { return Ok(whole) };
        self.with_seen(|seen| -> Result<Arc<Catalog>> {
            match seen {
                Some(seen) if seen.number == whole.number => Ok(Arc::clone(seen)),
                _ => Ok(Arc::clone(seen.insert(seen_by(user, &whole)?))),
            }
        })
    }

    /// True if nothing of the catalog is hidden from the session. `catalog`: as the session sees it.
    pub(crate) fn sees_all(&self, catalog: &Catalog) -> bool {
        match self.user() {
            None => true,
            Some(user) => catalog.users.get(user).is_some_and(|entry| entry.is_admin),
        }
    }

    /// # Errors
    /// [`ErrorKind::Forbidden`] if the user's role in the schema is weaker; [`ErrorKind::NotFound`], as for one that does
    /// not exist, if the user may not see it. `catalog`: as the session sees it.
    pub(crate) fn require(&self, catalog: &Catalog, schema: &str, role: Role) -> Result<()> {
        let Some(user) = self.user().filter(|_| !self.sees_all(catalog)) else { return Ok(()) };
        let own = catalog.users.get(user).and_then(|entry| entry.grants.get(schema)).copied();
        if own >= Some(role) {
            return Ok(());
        }
        // Everybody knows that there is a schema public; what is in it stays hidden all the same.
        if own.is_none() && schema != DEFAULT_SCHEMA {
            let message = format!("schema {schema} does not exist; create it with CREATE SCHEMA {schema}");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let deed = match role {
            Role::Read => "read",
            Role::Write => "change rows in",
            Role::Admin => "define tables, views or rights in",
        };
        Err(Error::new(
            ErrorKind::Forbidden,
            format!(
                "user {user} may not {deed} schema \"{schema}\"; an admin gives the right with GRANT {} ON SCHEMA {} TO {}",
                role.name(),
                sql_name(schema),
                sql_name(user)
            ),
        ))
    }

    /// As [`Session::require`], on the newest catalog.
    pub(crate) async fn require_now(&self, schema: &str, role: Role) -> Result<()> {
        match self.user() {
            None => Ok(()),
            Some(_) => self.require(self.catalog().await?.as_ref(), schema, role),
        }
    }

    /// # Errors
    /// [`ErrorKind::Forbidden`] if the user is no admin of the database. `deed`: what the statement does.
    pub(crate) async fn require_admin(&self, deed: &str) -> Result<()> {
        let Some(user) = self.user() else { return Ok(()) };
        if self.sees_all(self.catalog().await?.as_ref()) {
            return Ok(());
        }
        let message = format!(
            "user {user} may not {deed}: that takes an admin of the database; one gives the right with ALTER USER {} ADMIN",
            sql_name(user)
        );
        Err(Error::new(ErrorKind::Forbidden, message))
    }
}

/// The catalog as a user sees it: the schemas in which the user has a role, and of all users the one; everything for an
/// admin.
fn seen_by(user: &UserIdentity, whole: &Arc<Catalog>) -> Result<Arc<Catalog>> {
    let UserIdentity { name, id } = user;
    // One who was made anew under the name has nothing to do with the session.
    let Some(entry) = whole.users.get(name.as_ref()).filter(|entry| entry.id == **id) else {
        return Err(Error::new(ErrorKind::Forbidden, format!("user {name} was dropped; log in as another user")));
    };
    if entry.is_admin {
        return Ok(Arc::clone(whole));
    }
    let schemas = whole.schemas.iter().filter(|(name, _)| entry.grants.contains_key(*name));
    Ok(Arc::new(Catalog {
        number: whole.number,
        schemas: schemas.map(|(name, schema)| (name.clone(), schema.clone())).collect(),
        users: BTreeMap::from([(name.to_string(), entry.clone())]),
    }))
}

/// A name as SQL writes it: in quotes if it needs them.
fn sql_name(name: &str) -> String {
    let is_plain = name.starts_with(|letter: char| letter.is_ascii_lowercase() || letter == '_')
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_sql_needs_it() {
        for (name, expected) in [("anna", "anna"), ("a_1", "a_1"), ("Anna", "\"Anna\""), ("1a", "\"1a\""), ("", "\"\"")]
        {
            assert_eq!(sql_name(name), expected);
        }
        assert_eq!(sql_name("a\"b"), "\"a\"\"b\"");
    }
}
