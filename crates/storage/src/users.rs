//! Users and their rights, as the catalog keeps them. What a right allows, and how a password is checked, is the
//! engine's business: here a hash is an opaque text.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::catalog::log::Change;
use crate::database::{Database, check_name};
use crate::error::{Result, StorageError};

/// What a user may do in a schema. Each role holds those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read its tables and views.
    Read,
    /// Change their rows.
    Write,
    /// Make, alter and drop its tables and views, and grant roles in it.
    Admin,
}

impl Role {
    /// The role as SQL writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Admin => "ADMIN",
        }
    }

    /// The next weaker role.
    fn below(self) -> Option<Self> {
        match self {
            Self::Read => None,
            Self::Write => Some(Self::Read),
            Self::Admin => Some(Self::Write),
        }
    }
}

/// A user of a database.
#[derive(Clone, Default, PartialEq)]
pub struct UserEntry {
    /// Tells the user from others who had or will have the same name; empty for one that an older program made.
    pub id: String,
    /// The hash of the password, with its salt and parameters; a user without one cannot log in.
    pub password_hash: Option<String>,
    /// May do everything in the database.
    pub is_admin: bool,
    /// The role in each schema, by the schema's name.
    pub grants: BTreeMap<String, Role>,
}

impl fmt::Debug for UserEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("UserEntry")
            .field("id", &self.id)
            .field("has_password", &self.password_hash.is_some())
            .field("is_admin", &self.is_admin)
            .field("grants", &self.grants)
            .finish()
    }
}

/// What ALTER USER changes.
#[derive(Clone)]
pub enum UserChange {
    /// The hash of the new password.
    PasswordHash(String),
    /// Whether the user may do everything.
    IsAdmin(bool),
}

impl Catalog {
    /// This catalog with one more user. `None` if it is there and `if_not_exists`.
    fn with_user(&self, name: &str, user: &UserEntry, if_not_exists: bool) -> Result<Option<Catalog>> {
        if self.users.contains_key(name) {
            return if if_not_exists {
                Ok(None)
            } else {
                Err(StorageError::already_exists(format!(
                    "user {name} already exists; change it with ALTER USER or use IF NOT EXISTS"
                )))
            };
        }
        let mut next = self.clone();
        next.users.insert(name.to_owned(), user.clone());
        Ok(Some(next))
    }

    /// This catalog with a user changed. `None` if the user was like that.
    fn with_user_changed(&self, name: &str, change: &UserChange) -> Result<Option<Catalog>> {
        if matches!(change, UserChange::IsAdmin(false)) {
            self.refuse_last_admin(name)?;
        }
        let (mut next, mut user) = (self.clone(), self.user(name)?.clone());
        match change {
            UserChange::PasswordHash(hash) => user.password_hash = Some(hash.clone()),
            UserChange::IsAdmin(is_admin) if user.is_admin == *is_admin => return Ok(None),
            UserChange::IsAdmin(is_admin) => user.is_admin = *is_admin,
        }
        next.users.insert(name.to_owned(), user);
        Ok(Some(next))
    }

    /// This catalog without a user. `None` if it was not there and `if_exists`.
    fn without_user(&self, name: &str, if_exists: bool) -> Result<Option<Catalog>> {
        if if_exists && !self.users.contains_key(name) {
            return Ok(None);
        }
        self.user(name)?;
        self.refuse_last_admin(name)?;
        let mut next = self.clone();
        next.users.remove(name);
        Ok(Some(next))
    }

    /// This catalog with a user's role in a schema set to what `change` makes of it. `None` if that is the same.
    fn with_role(
        &self,
        user: &str,
        schema: &str,
        change: impl FnOnce(Option<Role>) -> Option<Role>,
    ) -> Result<Option<Catalog>> {
        self.schema(schema)?;
        let before = self.user(user)?.grants.get(schema).copied();
        let after = change(before);
        if after == before {
            return Ok(None);
        }
        let mut next = self.clone();
        if let Some(user) = next.users.get_mut(user) {
            match after {
                Some(role) => user.grants.insert(schema.to_owned(), role),
                None => user.grants.remove(schema),
            };
        }
        Ok(Some(next))
    }

    fn user(&self, name: &str) -> Result<&UserEntry> {
        self.users.get(name).ok_or_else(|| {
            StorageError::not_found(format!("there is no user {name}; make one with CREATE USER {name} PASSWORD '…'"))
        })
    }

    /// # Errors
    /// Nobody but this user is an admin.
    fn refuse_last_admin(&self, name: &str) -> Result<()> {
        let mut admins = self.users.iter().filter(|(_, user)| user.is_admin).map(|(name, _)| name);
        match (admins.next(), admins.next()) {
            (Some(only), None) if only == name => Err(StorageError::invalid(format!(
                "user {name} is the last admin; make another user one first with ALTER USER … ADMIN"
            ))),
            _ => Ok(()),
        }
    }
}

impl Database {
    /// Makes a user, with an id of its own. `false`: it was there and `if_not_exists`.
    ///
    /// # Errors
    /// [`StorageError::AlreadyExists`].
    pub async fn create_user(&self, name: &str, user: UserEntry, if_not_exists: bool) -> Result<bool> {
        check_name("user", name)?;
        let user = UserEntry { id: Uuid::new_v4().simple().to_string(), ..user };
        self.change_users(|catalog| catalog.with_user(name, &user, if_not_exists)).await
    }

    /// Changes a user's password or rank. `false`: the user was like that. The old password's hash is taken out of the older
    /// files of the catalog; cost: that of [`CatalogLog::forget_hashes`].
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] if no admin would be left.
    pub async fn alter_user(&self, name: &str, change: UserChange) -> Result<bool> {
        let is_changed = self.change_users(|catalog| catalog.with_user_changed(name, &change)).await?;
        if is_changed && matches!(change, UserChange::PasswordHash(_)) {
            self.catalog_log().forget_hashes().await;
        }
        Ok(is_changed)
    }

    /// Drops a user, with its roles and, as [`Database::alter_user`], its password's hash. `false`: it was not there and
    /// `if_exists`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] if no admin would be left.
    pub async fn drop_user(&self, name: &str, if_exists: bool) -> Result<bool> {
        let is_dropped = self.change_users(|catalog| catalog.without_user(name, if_exists)).await?;
        if is_dropped {
            self.catalog_log().forget_hashes().await;
        }
        Ok(is_dropped)
    }

    /// Gives a user a role in a schema. `false`: the user had it, or a stronger one.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for the user or the schema.
    pub async fn grant(&self, user: &str, schema: &str, role: Role) -> Result<bool> {
        self.change_users(|catalog| catalog.with_role(user, schema, |before| before.max(Some(role)))).await
    }

    /// Takes a role and those above it from a user; what is below stays. `false`: the user had none of them.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for the user or the schema.
    pub async fn revoke(&self, user: &str, schema: &str, role: Role) -> Result<bool> {
        self.change_users(|catalog| catalog.with_role(user, schema, |before| before.min(role.below()))).await
    }

    async fn change_users(&self, change: impl Fn(&Catalog) -> Result<Option<Catalog>>) -> Result<bool> {
        let change = |catalog: &Catalog| {
            Ok(match change(catalog)? {
                Some(next) => Change::Write(next, true),
                None => Change::Nothing(false),
            })
        };
        Ok(self.catalog_log().commit(change).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::memory;
    use crate::{DropSchema, OpenOptions};

    fn user(is_admin: bool) -> UserEntry {
        UserEntry { password_hash: Some("hash".into()), is_admin, ..UserEntry::default() }
    }

    async fn entry(database: &Database, name: &str) -> Option<UserEntry> {
        database.catalog().await.unwrap().users.get(name).cloned()
    }

    #[tokio::test]
    async fn users_come_change_and_go() {
        let database = memory().await;
        assert!(database.create_user("a", user(true), false).await.unwrap());
        assert!(!database.create_user("a", user(false), true).await.unwrap());
        assert!(matches!(database.create_user("a", user(false), false).await, Err(StorageError::AlreadyExists(_))));
        assert!(matches!(database.create_user("", user(false), false).await, Err(StorageError::Invalid(_))));
        let made = entry(&database, "a").await.unwrap();
        assert_eq!(made, UserEntry { id: made.id.clone(), ..user(true) });
        assert!(database.alter_user("a", UserChange::PasswordHash("other".into())).await.unwrap());
        assert_eq!(entry(&database, "a").await.unwrap().password_hash.as_deref(), Some("other"));
        let missing = database.alter_user("b", UserChange::IsAdmin(true)).await;
        assert!(matches!(missing, Err(StorageError::NotFound(_))), "{missing:?}");
        assert!(matches!(database.drop_user("b", false).await, Err(StorageError::NotFound(_))));
        assert!(!database.drop_user("b", true).await.unwrap());
    }

    #[tokio::test]
    async fn a_user_of_the_same_name_is_another_one() {
        let database = memory().await;
        database.create_user("root", user(true), false).await.unwrap();
        let mut ids = vec![];
        for _ in 0..2 {
            database.create_user("a", user(false), false).await.unwrap();
            ids.push(entry(&database, "a").await.unwrap().id);
            database.alter_user("a", UserChange::IsAdmin(true)).await.unwrap();
            assert_eq!(&entry(&database, "a").await.unwrap().id, ids.last().unwrap(), "ALTER leaves the user the same");
            database.drop_user("a", false).await.unwrap();
        }
        assert!(!ids[0].is_empty() && ids[0] != ids[1], "{ids:?}");
    }

    #[tokio::test]
    async fn the_last_admin_stays_one() {
        let database = memory().await;
        database.create_user("a", user(true), false).await.unwrap();
        database.create_user("b", user(false), false).await.unwrap();
        let is_refused = |result: Result<bool>| matches!(result, Err(StorageError::Invalid(_)));
        assert!(is_refused(database.drop_user("a", false).await));
        assert!(is_refused(database.alter_user("a", UserChange::IsAdmin(false)).await));
        assert!(!database.alter_user("b", UserChange::IsAdmin(false)).await.unwrap());
        assert!(database.alter_user("b", UserChange::IsAdmin(true)).await.unwrap());
        assert!(database.drop_user("a", false).await.unwrap());
        assert!(is_refused(database.drop_user("b", false).await));
    }

    #[tokio::test]
    async fn a_grant_never_weakens_and_a_revocation_leaves_what_is_below() {
        use Role::{Admin, Read, Write};
        let database = memory().await;
        database.create_user("a", user(false), false).await.unwrap();
        let role = async || entry(&database, "a").await.unwrap().grants.get("public").copied();
        for (granted, expected) in [(Write, Write), (Read, Write), (Admin, Admin)] {
            database.grant("a", "public", granted).await.unwrap();
            assert_eq!(role().await, Some(expected), "after GRANT {}", granted.name());
        }
        for (revoked, expected) in
            [(Admin, Some(Write)), (Admin, Some(Write)), (Write, Some(Read)), (Read, None), (Write, None)]
        {
            database.revoke("a", "public", revoked).await.unwrap();
            assert_eq!(role().await, expected, "after REVOKE {}", revoked.name());
        }
        assert!(matches!(database.grant("b", "public", Read).await, Err(StorageError::NotFound(_))));
        assert!(matches!(database.grant("a", "nowhere", Read).await, Err(StorageError::NotFound(_))));
        assert!(matches!(database.revoke("a", "nowhere", Read).await, Err(StorageError::NotFound(_))));
    }

    #[tokio::test]
    async fn roles_go_with_their_schema() {
        let database = memory().await;
        database.create_user("a", user(false), false).await.unwrap();
        database.create_schema("s", false).await.unwrap();
        database.grant("a", "s", Role::Admin).await.unwrap();
        database.grant("a", "public", Role::Read).await.unwrap();
        database.drop_schema("s", DropSchema::default()).await.unwrap();
        database.create_schema("s", false).await.unwrap();
        assert_eq!(entry(&database, "a").await.unwrap().grants, BTreeMap::from([("public".into(), Role::Read)]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_processes_that_drop_the_last_two_admins_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let one = Database::open(&path, OpenOptions::default()).await.unwrap();
        let two = Database::open(&path, OpenOptions::default()).await.unwrap();
        for _ in 0..8 {
            for name in ["a", "b"] {
                one.create_user(name, user(true), true).await.unwrap();
            }
            let (first, second) = tokio::join!(one.drop_user("a", false), two.drop_user("b", false));
            assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
            assert_eq!(two.catalog().await.unwrap().users.len(), 1);
        }
    }

    #[test]
    fn a_hash_is_not_shown() {
        let shown = format!("{:?}", UserEntry { password_hash: Some("secret".into()), ..UserEntry::default() });
        assert!(!shown.contains("secret"), "{shown}");
    }
}
